"""Which images a command works on, and the names of what it writes."""

import os
from collections.abc import Sequence
from pathlib import Path

from jclnf.images import IMAGE_SUFFIXES

_OVERLAY = "_overlay.png"


def find_images(paths: Sequence[str], out: Path) -> tuple[list[Path], list[str]]:
    """Return the images that `paths` name, each once, and a line for each path with none.

    A file is taken whatever its name; of a folder its images are, sorted by name, without those
    of folders in it, hidden ones, and earlier overlays if `out` is that folder.
    """
    found: dict[str, Path] = {}
    problems = []
    for path in map(Path, paths):
        images = [path]
        if path.is_dir():
            try:
                images = sorted(p for p in path.iterdir() if _is_image(p, out))
            except OSError as e:
                problems.append(f"{path}: cannot be read: {e.strerror or e}")
                continue
            if not images:
                problems.append(f"{path}: no images in this folder")
        for image in images:
            found.setdefault(os.path.abspath(image), image)
    return list(found.values()), problems


def _is_image(path: Path, out: Path) -> bool:
    if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES or path.is_dir():
        return False
    drawn = path.name.endswith(_OVERLAY)
    return not (drawn and os.path.abspath(path.parent) == os.path.abspath(out))


def overlay_paths(images: Sequence[Path], out: Path) -> list[Path]:
    """Return a file in `out` for the overlay of each image: `<stem>_overlay.png`, see `_paths`."""
    return _paths(images, out, _OVERLAY, images)


def openface_paths(images: Sequence[Path], out: Path, kept: Sequence[Path]) -> list[Path]:
    """Return a file in `out` for OpenFace's table of each image: `<stem>.csv`, see `_paths`."""
    return _paths(images, out, ".csv", kept)


def _paths(images: Sequence[Path], out: Path, ending: str, kept: Sequence[Path]) -> list[Path]:
    """Return a file in `out` for each image: `<stem><ending>`.

    Images of the same stem (from several folders, or of several formats) get numbers, and none of
    the files to be `kept` is overwritten.
    """
    # Some file systems do not tell upper case from lower.
    taken = {os.path.abspath(file).casefold() for file in kept}
    names = []
    for image in images:
        number, stem = 1, image.stem
        while True:
            path = out / (stem + ending if number == 1 else f"{stem}_{number}{ending}")
            key = os.path.abspath(path).casefold()
            if key not in taken:
                break
            number += 1
        taken.add(key)
        names.append(path)
    return names
