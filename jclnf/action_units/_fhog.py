"""Felzenszwalb's histograms of oriented gradients (FHOG), as dlib computes them.

Source: Felzenszwalb, Girshick, McAllester, Ramanan, "Object detection with discriminatively trained
part-based models" (PAMI 2010), section 6. What differs from it: texture is not divided by the
square root of the number of channels, and there is no channel of zeros.
"""

import functools
from typing import Any

import numpy as np

from jclnf.action_units._model import SIDE
from jclnf.openface import AU_CELLS

CELL = 8
"""Side of a cell, pixels."""
GRID = SIDE // CELL
"""Cells along a side, of which the outermost are left out."""
DIRECTIONS = np.array(
    [
        (1.0, 0.0), (0.9397, 0.3420), (0.7660, 0.6428), (0.5, 0.8660), (0.1736, 0.9848),
        (-0.1736, 0.9848), (-0.5, 0.8660), (-0.7660, 0.6428), (-0.9397, 0.3420),
    ],
    np.float32,
)  # fmt: skip
"""dlib's unit vectors in steps of 20 degrees, rounded as it rounds them."""
BINS = 2 * len(DIRECTIONS)

_TRUNCATION = 0.2
_NORM = 1e-4
_TEXTURE = 2 * 0.2357
_GROUPED = 105
"""Columns before this are computed eight at a time by dlib, which resolves ties of the channels
otherwise than the rest does."""


def fhog(image: np.ndarray) -> np.ndarray:
    """The descriptor `(12, 12, 31)` float32 of an image `(SIDE, SIDE, 3)` uint8 (blue, green,
    red): 18 signed orientations, 9 unsigned ones, 4 textures."""
    values = image.astype(np.int16)
    gx = values[1:-1, 2:] - values[1:-1, :-2]
    gy = values[2:, 1:-1] - values[:-2, 1:-1]
    lengths = gx.astype(np.int32) ** 2 + gy.astype(np.int32) ** 2
    channel = _steepest(lengths)[..., None]
    gx, gy = (np.take_along_axis(g, channel, 2)[..., 0] for g in (gx, gy))
    magnitudes, bins = _table()
    index = (gy.astype(np.int32) + 255) * 511 + gx + 255
    votes = magnitudes[index].astype(np.float64)
    cells, low, high = _spread()
    hist = np.zeros((GRID + 2) ** 2 * BINS)
    at = bins[index]
    for row, weight_row in ((cells, low), (cells + 1, high)):
        for column, weight_column in ((cells, low), (cells + 1, high)):
            place = (row[:, None] * (GRID + 2) + column) * BINS + at
            weights = votes * (weight_row[:, None] * weight_column)
            hist += np.bincount(place.reshape(-1), weights.reshape(-1), len(hist))
    histograms = hist.reshape(GRID + 2, GRID + 2, BINS)[1:-1, 1:-1]
    return np.asarray(normalised(histograms.astype(np.float32)))


def _steepest(lengths: np.ndarray) -> np.ndarray:
    """Which channel has the steepest gradient, `(y, x)`; ties as dlib resolves them."""
    blue, green, red = np.moveaxis(lengths, 2, 0)
    grouped = np.where(red > green, 2, 1)
    grouped = np.where(np.maximum(green, red) > blue, grouped, 0)
    rest = np.where(green > red, 1, 2)
    rest = np.where(blue > np.maximum(green, red), 0, rest)
    return np.where(np.arange(1, SIDE - 1) < _GROUPED, grouped, rest)


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Magnitude, float32, and orientation of each gradient of whole numbers from -255 to 255."""
    values = np.arange(-255, 256, dtype=np.float32)
    gx, gy = values[None], values[:, None]
    dots = gx * DIRECTIONS[:, 0, None, None] + gy * DIRECTIONS[:, 1, None, None]
    best = np.abs(dots).argmax(0)
    negative = np.take_along_axis(dots, best[None], 0)[0] < 0
    bins = (best + len(DIRECTIONS) * negative).astype(np.int32)
    return np.sqrt(gx**2 + gy**2).reshape(-1), bins.reshape(-1)


@functools.cache
def _spread() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel but the outermost ones, its first cell (from 0, the border's), and the parts of
    its vote that this cell and the next one get."""
    position = (np.arange(1, SIDE - 1, dtype=np.float32) + 0.5) / CELL - 0.5
    first = np.floor(position)
    return first.astype(np.int64) + 1, 1 - (position - first), position - first


def normalised(histograms: Any) -> Any:
    """The descriptor `(12, 12, 31)` of histograms `(GRID, GRID, 18)`, NumPy's or JAX's."""
    xp = histograms.__array_namespace__()
    half = BINS // 2
    unsigned = histograms[..., :half] + histograms[..., half:]
    energy = xp.sum(unsigned**2, axis=-1)
    rows = energy[:-1] + energy[1:]
    blocks = rows[:, :-1] + rows[:, 1:]
    limits = _TRUNCATION * xp.sqrt(blocks + _NORM)
    inner, inner_unsigned = histograms[1:-1, 1:-1], unsigned[1:-1, 1:-1]
    signed_sum, unsigned_sum, textures = 0.0, 0.0, []
    for y, x in ((1, 1), (0, 1), (1, 0), (0, 0)):
        limit = limits[y : y + AU_CELLS, x : x + AU_CELLS, None]
        weight = _TRUNCATION / 2 / limit
        signed = xp.minimum(inner, limit) * weight
        signed_sum = signed_sum + signed
        unsigned_sum = unsigned_sum + xp.minimum(inner_unsigned, limit) * weight
        textures.append(_TEXTURE * xp.sum(signed, axis=-1))
    return xp.concatenate([signed_sum, unsigned_sum, xp.stack(textures, axis=-1)], axis=-1)
