"""Annotations as .pts files beside their images, as 300-W and others have them.

Pixels are counted from 1 in these files.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jclnf.annotations._face import AnnotatedFace
from jclnf.annotations._text import Entries, number, text_of
from jclnf.errors import AnnotationError
from jclnf.images import Folder

MAX_BYTES = 2**20
"""Largest .pts file that is read; those of 68 points have about 1,500 bytes."""


def read_folder(folder: Path, note: Callable[[str], None]) -> Entries:
    """The faces of all .pts files in a folder and in those within it, sorted by name.

    A face in a folder within it is of the person that the outermost one is called after. Images
    without a .pts file, and other files, are left out: `note` is called with a line on them.
    """
    found = Folder.of(folder, deep=True)
    images: dict[tuple[Path, str], list[Path]] = {}
    for image in found.images:
        images.setdefault((image.parent, image.stem), []).append(image)
    annotated = [path for path in found.others if path.suffix.lower() == ".pts"]
    known = {(path.parent, path.stem) for path in annotated}
    found.others = sorted({*found.others, *found.videos} - set(annotated))
    alone = [image for key, files in images.items() if key not in known for image in files]
    if annotated:
        for line in found.left_out("images or .pts files", ("no .pts file beside them", alone)):
            note(line)
    for path in annotated:
        inside = path.parent.relative_to(folder).parts
        for place, face in read_pts(path, images.get((path.parent, path.stem), [])):
            yield place, dataclasses.replace(face, identity=inside[0] if inside else "")


def read_pts(path: Path, images: Sequence[Path] | None = None) -> Entries:
    """The face of a .pts file, whose image is among `images`, or else beside it."""
    if images is None:
        images = [image for image in Folder.of(path.parent).images if image.stem == path.stem]
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
    if len(images) != 1:
        kind = "several images" if images else "no image"
        raise AnnotationError(f"{path}: {kind} called {path.stem} beside it: there must be one")
    yield str(path), AnnotatedFace(images[0], np.array(points) - 1)


def pts_text(landmarks: np.ndarray) -> str:
    """Landmarks `(n, 2)`, pixels counted from 0, as the text of a .pts file."""
    lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in np.asarray(landmarks, float)]
    return "\n".join(["version: 1", f"n_points: {len(lines)}", "{", *lines, "}", ""])
