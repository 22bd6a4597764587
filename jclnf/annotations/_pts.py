"""Annotations as .pts files beside their images, as 300-W and others have them.

Pixels are counted from 1 in these files.
"""

from pathlib import Path

import numpy as np

from jclnf.annotations._face import AnnotatedFace
from jclnf.annotations._text import Entries, number, text_of
from jclnf.errors import AnnotationError
from jclnf.images import IMAGE_SUFFIXES

MAX_BYTES = 2**20
"""Largest .pts file that is read; those of 68 points have about 1,500 bytes."""


class Stems:
    """The images of folders by their stems; each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def images(self, path: Path) -> list[Path]:
        """The images beside `path` that have its stem."""
        stems = self._folders.get(path.parent)
        if stems is None:
            stems = self._folders[path.parent] = {}
            for found in sorted(path.parent.iterdir()):
                if found.suffix.lower() in IMAGE_SUFFIXES:
                    stems.setdefault(found.stem, []).append(found)
        return stems.get(path.stem, [])


def read_folder(folder: Path) -> Entries:
    """The faces of all .pts files in a folder and in those within it, sorted by name."""
    stems = Stems()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".pts" and not path.name.startswith("."):
            yield from read_pts(path, stems)


def read_pts(path: Path, stems: Stems) -> Entries:
    """The face of a .pts file."""
    lines = [line.strip() for line in text_of(path, MAX_BYTES).splitlines()]
    filled = [(i, line) for i, line in enumerate(lines, 1) if line]
    begin = next((at for at, (_, line) in enumerate(filled) if line == "{"), len(filled))
    header = {}
    for i, line in filled[:begin]:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            raise AnnotationError(f"{path}, line {i}: expected version, n_points or {{")
        header[name.lower()] = value
    if header.get("version") not in ("1", "1.0"):
        raise AnnotationError(f"{path}: not a .pts file of version 1")
    if begin == len(filled) or filled[-1][1] != "}":
        raise AnnotationError(f"{path}: the points are not between {{ and }}: is the file whole?")
    points = []
    for i, line in filled[begin + 1 : -1]:
        place, texts = f"{path}, line {i}", line.split()
        if len(texts) != 2:
            raise AnnotationError(f"{place}: expected x and y")
        points.append([number(place, text) for text in texts])
    declared = header.get("n_points", "missing")
    if declared != str(len(points)) or not points:
        raise AnnotationError(f"{path}: {len(points)} points, but n_points is {declared[:40]}")
    images = stems.images(path)
    if len(images) != 1:
        kind = "several images" if images else "no image"
        raise AnnotationError(f"{path}: {kind} called {path.stem} beside it: there must be one")
    yield str(path), AnnotatedFace(images[0], np.array(points) - 1)


def pts_text(landmarks: np.ndarray) -> str:
    """Landmarks `(n, 2)`, pixels counted from 0, as the text of a .pts file."""
    lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in np.asarray(landmarks, float)]
    return "\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}", ""])
