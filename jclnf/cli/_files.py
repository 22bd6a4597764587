"""Which images a command works on, and what it has written before."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jclnf.images import Folder


@dataclass
class Found:
    """What paths name.

    Attributes:
        images: each once.
        problems: a line for each path that names none.
        notes: a line for each folder of which something is not used.
    """

    images: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_images(paths: Sequence[str]) -> Found:
    """The images that paths name.

    A file is taken whatever it is; of a folder and those in it, the images, sorted by name, without
    hidden ones and what runs of jclnf have written there.
    """
    found = Found()
    images: dict[str, Path] = {}
    for path in map(Path, paths):
        named = [path]
        if path.is_dir():
            try:
                folder = Folder.of(path, deep=True)
            except OSError as e:
                found.problems.append(f"{path}: cannot be read: {e.strerror or e}")
                continue
            named = folder.images
            found.notes += folder.left_out("images", ("videos", folder.videos))
            if not named:
                found.problems.append(f"{path}: no images in this folder")
        for image in named:
            images.setdefault(os.path.abspath(image), image)
    found.images = list(images.values())
    return found
