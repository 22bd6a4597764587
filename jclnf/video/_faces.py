"""What action units are told by, in OpenFace's files: descriptors (`.hog`), and the faces that they
describe."""

import os
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from jclnf.action_units import Described, FrameUnits
from jclnf.openface import AU_CELLS, AU_CHANNELS
from jclnf.outputs import write_bytes

RECORD = np.dtype(
    [("size", "<i4", (3,)), ("good", "<f4"), ("values", "<f4", (AU_CELLS, AU_CELLS, AU_CHANNELS))]
)
"""Of a row of the table: cells down, cells across, numbers of a cell; 1, or -1 where the face was
not seen; and the numbers."""


class DescriptorFile:
    """A file of such records, which only grows.

    Args:
        path: the file.
        records: how many there are already; what follows them is removed.
    """

    def __init__(self, path: Path, records: int) -> None:
        self._file: BinaryIO = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(records * RECORD.itemsize)
        self._file.seek(0, os.SEEK_END)

    def append(self, units: FrameUnits | None) -> None:
        record = np.zeros((), RECORD)
        described = _of(units)
        record["size"] = AU_CELLS, AU_CELLS, AU_CHANNELS
        record["good"] = -1 if described is None else 1
        record["values"] = 0 if described is None else described.appearance
        self._file.write(record.tobytes())

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def write_face(folder: Path, frame: int, face: int, units: FrameUnits | None) -> None:
    """The aligned face under its mask, as OpenFace names it; black where it was not seen."""
    described, side = _of(units), 112
    image = np.zeros((side, side, 3), np.uint8) if described is None else described.aligned
    data = cv2.imencode(".bmp", image)[1].tobytes()
    # Whoever does the run holds its lock.
    name = f"frame_det_{face:02d}_{frame:06d}.bmp"
    write_bytes(folder / name, data, lock=False, sync=False)


def _of(units: FrameUnits | None) -> Described | None:
    return None if units is None else units.described
