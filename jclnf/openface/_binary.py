"""Bounded reading of OpenFace's little-endian binary files.

The files carry counts and matrix headers that say how much follows. None of them is believed:
what a field asks for is compared with the bytes that are left before anything is made of it, so
a header can make a reader fail but not allocate.
"""

import os
import stat
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np

from jclnf.errors import ModelFileError, near_file

MATRIX_TYPES: dict[int, np.dtype] = {
    0: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
}
"""The element types of OpenFace's matrices by the code that a matrix header holds."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_bytes(path: Path, limit: int, *, missing: str = "no such file") -> bytes:
    """The content of a regular file of 1 to `limit` bytes.

    Args:
        path: the file.
        limit: most bytes that are read.
        missing: what to say, remedy included, of a file that is not there.

    Raises:
        ModelFileError: missing, a directory, a device or pipe, unreadable, empty, or too large.
    """
    try:
        status = os.stat(path)
        # Opening a pipe would wait for a writer, and reading a device might never end.
        if stat.S_ISDIR(status.st_mode):
            raise ModelFileError(path, "is a directory, where a file is expected")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(path, "is not a regular file")
        if status.st_size > limit:
            problem = f"has {status.st_size} bytes, a file of this kind at most {limit}"
            raise ModelFileError(path, problem)
        with open(path, "rb") as file:
            data = file.read(status.st_size + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFileError(path, f"{missing}{near_file(path)}") from None
    except ModelFileError:
        raise
    except (OSError, ValueError) as error:
        raise ModelFileError(path, f"cannot be read: {error}") from error
    if not data:
        raise ModelFileError(path, "is empty")
    return data


class BinaryReader:
    """A position in the bytes of a file, moved on by reading one field after the other.

    Every method names what it reads (`what`), for the message of the `ModelFileError` that it
    raises where the file ends too early or holds something else.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.offset = 0
        self.within = ""
        """Which part of the file is being read, put before the problem in messages."""
        self._data = data

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self._data)

    def error(self, problem: str, *, offset: int | None = None) -> ModelFileError:
        """The error for a problem at `offset`, or else at the current position."""
        at = self.offset if offset is None else offset
        return ModelFileError(self.path, self.within + problem, offset=at)

    def integer(self, what: str, low: int, high: int) -> int:
        """An int32 between `low` and `high`, both included."""
        start = self._take(4, what)
        value = int(struct.unpack_from("<i", self._data, start)[0])
        if not low <= value <= high:
            problem = f"{what} is {value}, not between {low} and {high}"
            raise self.error(problem, offset=start)
        return value

    def expect(self, value: int, what: str) -> None:
        """An int32 that can only be `value`."""
        start = self._take(4, what)
        found = struct.unpack_from("<i", self._data, start)[0]
        if found != value:
            raise self.error(f"{what} is {found}, not {value}", offset=start)

    def skip_integer(self, what: str) -> None:
        """An int32 of any value."""
        self._take(4, what)

    def number(self, what: str, low: float = -FLOAT32_MAX, high: float = FLOAT32_MAX) -> float:
        """A float64 between `low` and `high`, both included; never NaN."""
        start = self._take(8, what)
        value = float(struct.unpack_from("<d", self._data, start)[0])
        if not low <= value <= high:
            problem = f"{what} is {value:g}, not between {low:g} and {high:g}"
            raise self.error(problem, offset=start)
        return value

    def numbers(self, count: int, what: str) -> np.ndarray:
        """`count` float64 as a float32 array `(count,)`."""
        start = self.offset
        values = self.records(np.dtype("<f8"), count, what)
        return self.float32(values, what, offset=start)

    def records(self, dtype: np.dtype, count: int, what: str) -> np.ndarray:
        """`count` packed records as a read-only array `(count,)` over the file's own bytes."""
        start = self._take(count * dtype.itemsize, what)
        if count == 0:
            return np.zeros(0, dtype)
        return np.frombuffer(self._data, dtype, count, start)

    def matrix(
        self, what: str, shape: tuple[int | None, int | None], types: Collection[int]
    ) -> np.ndarray:
        """A matrix: int32 rows, columns and type, then the elements row by row.

        Args:
            what: name of the matrix.
            shape: rows and columns that it must have; None where any number will do.
            types: codes of `MATRIX_TYPES` that it may have.

        Returns:
            A read-only `(rows, columns)` array of the type in the file, values unchecked.
        """
        start = self.offset
        rows, columns = (self.integer(f"{part} of {what}", 0, 2**31 - 1) for part in _PARTS)
        for found, wanted in zip((rows, columns), shape, strict=True):
            if wanted is not None and found != wanted:
                problem = f"{what} is {rows} x {columns}, not {_shape_text(shape)}"
                raise self.error(problem, offset=start)
        code_at = self.offset
        code = self.integer(f"element type of {what}", -(2**31), 2**31 - 1)
        if code not in types:
            allowed = " or ".join(str(t) for t in sorted(types))
            problem = f"{what} has the element type {code}, not {allowed}"
            raise self.error(problem, offset=code_at)
        return self.records(MATRIX_TYPES[code], rows * columns, what).reshape(rows, columns)

    def float32(self, values: np.ndarray, what: str, *, offset: int) -> np.ndarray:
        """Values that were read from `offset` on, in float32 and checked to be finite in it."""
        with np.errstate(all="ignore"):
            converted = values.astype(np.float32)
        if not np.isfinite(converted).all():
            raise self.error(f"{what}: not a finite single-precision number", offset=offset)
        return converted

    def end(self) -> None:
        """The end of the file."""
        if self.offset != self.size:
            problem = f"{self.size - self.offset} bytes follow where the file should end"
            raise self.error(problem)

    def _take(self, size: int, what: str) -> int:
        start = self.offset
        if size > self.size - start:
            problem = f"truncated: {what} takes {size} bytes, {self.size - start} are left"
            raise self.error(problem)
        self.offset += size
        return start


_PARTS = ("rows", "columns")


def _shape_text(shape: tuple[int | None, int | None]) -> str:
    return " x ".join("any" if side is None else str(side) for side in shape)
