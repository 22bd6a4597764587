"""The views in the files of all kinds of OpenFace's patch experts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jclnf.errors import ModelFileError
from jclnf.openface._binary import BinaryReader
from jclnf.openface._ccnf import MAX_SCALES, MAX_VIEWS
from jclnf.openface._text import Entry, TextReader

_INT32, _FLOAT64 = 4, 6


class NumberReader(TextReader):
    """A reader of numbers that stand in a text file outside matrices."""

    def numbers(self, count: int, what: str) -> np.ndarray:
        """`count` finite numbers as a float32 array `(count,)`."""
        return self._numbers(count, what).astype(np.float32)

    def rest(self, what: str, limit: int) -> np.ndarray:
        """All numbers up to the end of the file, at most `limit`, as `numbers` gives them."""
        left = len(self._data[self._at :].split())
        if left > limit:
            raise self.error(f"{what} has {left} numbers, more than {limit}")
        return self.numbers(left, what)


def read_views(reader: BinaryReader | TextReader, landmarks: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of views, for each its centre, and for each which landmarks it shows.

    Returns:
        Centres `(v, 3)` in radians, float32, and visibility `(v, landmarks)`, bool.

    Raises:
        ModelFileError: matrices of another shape or type, angles beyond 360 degrees, visibilities
            other than 0 and 1.
    """
    views = reader.integer("number of views", 1, MAX_VIEWS)
    centres = []
    for _ in range(views):
        degrees = reader.matrix("the centre of a view", (3, 1), (_FLOAT64,))[:, 0]
        if not (np.abs(degrees) <= 360).all():
            raise reader.error("the centre of a view is not within 360 degrees")
        centres.append(np.radians(degrees))
    visible = []
    for _ in range(views):
        what = "the visibility of the shape model's landmarks in a view"
        flags = reader.matrix(what, (landmarks, 1), (_INT32,))[:, 0]
        if not np.isin(flags, (0, 1)).all():
            raise reader.error(f"{what} holds other numbers than 0 and 1")
        visible.append(flags.astype(bool))
    return np.stack(centres).astype(np.float32), np.stack(visible)


def check_scales(entries: Sequence[Entry]) -> None:
    """Refuse a list of files that no detector has, before any is read."""
    if len(entries) > MAX_SCALES:
        problem = f"lists {len(entries)} files of patch experts, more than {MAX_SCALES}"
        raise ModelFileError(entries[0].list_path, problem)


def check_same(paths: Sequence[Path], what: str, values: Sequence[np.ndarray]) -> None:
    """Refuse files whose experts differ in what a fit takes to be the same at all scales."""
    for path, value in zip(paths[1:], values[1:], strict=True):
        if value.shape != values[0].shape or not np.allclose(value, values[0], rtol=0, atol=1e-5):
            raise ModelFileError(path, f"has {what} than {paths[0].name}")
