"""Which images a command works on."""

import os
from collections.abc import Sequence
from pathlib import Path

from jclnf.images import Found


def find_images(paths: Sequence[str]) -> Found[Path]:
    """The images that paths name.

    A file is taken whatever it is; of a folder and those in it, the images, sorted by name, without
    hidden ones and what runs of jclnf have written there.
    """
    found = Found[Path]()
    for given in paths:
        path = Path(given)
        if "://" in given and not os.path.exists(path):
            found.problems.append(
                f"{given}: no path on this machine; with --ray, s3:// and the like are read"
            )
            continue
        named = [path]
        if os.path.isdir(path):
            folder = found.look_through(path, deep=True)
            if folder is None:
                continue
            named = folder.images
            found.notes += folder.left_out("images", ("videos", folder.videos))
            if not named:
                found.problems.append(f"{path}: no images in this folder")
        found.add(named)
    return found
