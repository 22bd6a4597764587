"""Which images a command works on."""

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
        if "://" in given and not path.exists():
            found.problems.append(f"{given}: not on this machine; with --ray it can be read")
            continue
        named = [path]
        if path.is_dir():
            folder = found.look_through(path, deep=True)
            if folder is None:
                continue
            named = folder.images
            found.notes += folder.left_out("images", ("videos", folder.videos))
            if not named:
                found.problems.append(f"{path}: no images in this folder")
        found.add(named)
    return found
