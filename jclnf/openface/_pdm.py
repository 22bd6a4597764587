"""OpenFace's text files of point distribution models.

Three matrices: mean `3n x 1`, components `3n x m`, eigenvalues `1 x m`. The axis of `3n` holds
all x, then all y, then all z, in millimetres (x right, y down, z away from the viewer).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclnf.openface._text import MAX_TEXT_BYTES, TextReader, read_text

MAX_LANDMARKS = 10_000
"""Most landmarks that a file may have; OpenFace's have up to 68."""


class PDMArrays(NamedTuple):
    """The arrays of a `jclnf.geometry.PDM`, in NumPy's float32."""

    mean: np.ndarray
    """`(n, 3)`, millimetres."""
    components: np.ndarray
    """`(n, 3, m)`, millimetres per unit of each parameter."""
    eigenvalues: np.ndarray
    """`(m,)`, positive."""


def read_pdm(path: Path, *, missing: str = "no such file") -> PDMArrays:
    """Read the shape model of a text file.

    Args:
        path: the file.
        missing: what to say if it is not there.

    Raises:
        ModelFileError: not a file of numbers, truncated, trailing numbers, matrices that do not
            go together, numbers that are not finite, a mean shape without extent in x or y, or
            eigenvalues that are not positive.
    """
    reader = TextReader(path, read_text(path, MAX_TEXT_BYTES, missing=missing))
    mean = reader.matrix("the mean shape", (None, 1))
    n, rest = divmod(len(mean), 3)
    if rest or not 1 <= n <= MAX_LANDMARKS:
        problem = f"the mean shape has {len(mean)} numbers, not x, y and z of 1 to {MAX_LANDMARKS}"
        raise reader.error(f"{problem} landmarks")
    mean = mean.reshape(3, n).T
    if not (np.ptp(mean[:, :2].astype(np.float64), axis=0) > 0).all():
        raise reader.error("the landmarks of the mean shape lie on one line of x or y")
    components = reader.matrix("the components", (3 * n, None))
    m = components.shape[1]
    if m == 0:
        raise reader.error("the shape model has no components")
    eigenvalues = reader.matrix("the eigenvalues", (1, m))[0]
    # The prior divides by them: below the least normal number the result is infinite.
    if not (eigenvalues >= np.finfo(np.float32).tiny).all():
        raise reader.error("an eigenvalue is not positive")
    reader.end()
    components = components.reshape(3, n, m).transpose(1, 0, 2)
    return PDMArrays(*(np.ascontiguousarray(a) for a in (mean, components, eigenvalues)))
