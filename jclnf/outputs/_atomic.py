"""Files that are written whole or not at all, and by one process."""

import glob
import os
from pathlib import Path
from typing import IO

import numpy as np


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a picture, `(h, w, 3)` uint8 in OpenCV's order, all or nothing. Raises OSError."""
    import cv2

    write_bytes(path, cv2.imencode(".png", image)[1].tobytes())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, all or nothing. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def lock(file: IO[bytes]) -> bool:
    """Keep this open file to this process until it is closed; False if another one has it.

    Where there are no such locks, everybody gets it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True


def remove_partial(path: Path) -> None:
    """Remove what killed processes left of a file that they were writing."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)
