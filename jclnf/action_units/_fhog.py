"""Felzenszwalb's histograms of oriented gradients (FHOG), as dlib computes them.

Source: Felzenszwalb, Girshick, McAllester, Ramanan, "Object detection with discriminatively trained
part-based models" (PAMI 2010), section 6. What differs from it: texture is not divided by the
square root of the number of channels, and there is no channel of zeros.

XLA computes what it fuses anew for each of its readers. There are loops over colours and
orientations where that would be many times: what enters a loop is computed once.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jclnf.action_units._model import SIDE
from jclnf.geometry import precise
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
"""dlib's unit vectors in steps of 20 degrees, rounded as it rounds them.

No gradient of whole grey levels is so near to the middle of two that rounding decides.
"""
BINS = 2 * len(DIRECTIONS)

_TRUNCATION = 0.2
_NORM = 1e-4
_TEXTURE = 2 * 0.2357
_GROUPED = 105
"""Columns before this are computed eight at a time by dlib, which resolves ties of the channels
otherwise than the rest does."""
_TOGETHER = 6
"""Orientations that are counted at a time."""


def fhog(image: Float[Array, "s s 3"]) -> Float[Array, "c c 31"]:
    """The descriptor of an image `(SIDE, SIDE, 3)` (blue, green, red): 18 signed orientations, 9
    unsigned ones, 4 textures of each of 12 x 12 cells."""

    def gradients(grey: Float[Array, "s s"]) -> tuple[Array, Array, Array]:
        gx = grey[1:-1, 2:] - grey[1:-1, :-2]
        gy = grey[2:, 1:-1] - grey[:-2, 1:-1]
        return gx, gy, gx**2 + gy**2

    gx, gy, squared = lax.map(gradients, jnp.moveaxis(image, 2, 0))
    is_blue, is_red = _steepest(*squared)
    gx, gy, squared = (
        jnp.where(is_blue, blue, jnp.where(is_red, red, green))
        for blue, green, red in (gx, gy, squared)
    )
    steep = squared > 0
    magnitude = jnp.where(steep, jnp.sqrt(jnp.where(steep, squared, 1.0)), 0.0)
    bins = _orientation(lax.stop_gradient(gx), lax.stop_gradient(gy))
    parts = _parts().astype(image.dtype)

    def count(some: Int[Array, " o"]) -> Float[Array, "o i j"]:
        votes = jnp.where(bins == some[:, None, None], magnitude, 0.0)
        columns = precise("oyx,xj->oyj", votes, parts)
        return precise("oyj,yi->oij", columns, parts)

    histograms = lax.map(count, jnp.arange(BINS).reshape(-1, _TOGETHER))
    return _normalised(jnp.moveaxis(histograms.reshape(BINS, GRID, GRID), 0, 2))


def _steepest(blue: Array, green: Array, red: Array) -> tuple[Array, Array]:
    """Where blue has the steepest gradient, and where red a steeper one than green, of squared
    gradients `(y, x)`; ties as dlib resolves them."""
    grouped = np.arange(1, SIDE - 1) < _GROUPED
    is_red = (red > green) | (~grouped & (red == green))
    other = jnp.where(is_red, red, green)
    return (blue > other) | (grouped & (blue == other)), is_red


def _orientation(gx: Float[Array, "y x"], gy: Float[Array, "y x"]) -> Int[Array, "y x"]:
    """The bin of each gradient, the first of several that are as near."""
    best, bins = jnp.zeros_like(gx), jnp.zeros(gx.shape, jnp.int32)
    for k, (cosine, sine) in enumerate(DIRECTIONS.tolist()):
        dot = cosine * gx + sine * gy
        nearer = jnp.abs(dot) > best
        bins = jnp.where(nearer, jnp.where(dot < 0, k + len(DIRECTIONS), k), bins)
        best = jnp.where(nearer, jnp.abs(dot), best)
    return bins


def _parts() -> np.ndarray:
    """Which part of its vote a pixel but the outermost gives to each cell."""
    position = (np.arange(1, SIDE - 1) + 0.5) / CELL - 0.5
    return np.maximum(0.0, 1 - np.abs(position[:, None] - np.arange(GRID)))


def _normalised(histograms: Float[Array, "g g 18"]) -> Float[Array, "c c 31"]:
    """The descriptor of the histograms of all cells."""
    half = BINS // 2
    unsigned = histograms[..., :half] + histograms[..., half:]
    energy = jnp.sum(unsigned**2, axis=-1)
    rows = energy[:-1] + energy[1:]
    limits = _TRUNCATION * jnp.sqrt(rows[:, :-1] + rows[:, 1:] + _NORM)
    inner, inner_unsigned = histograms[1:-1, 1:-1], unsigned[1:-1, 1:-1]
    signed_sum, unsigned_sum, textures = jnp.zeros(()), jnp.zeros(()), []
    for y, x in ((1, 1), (0, 1), (1, 0), (0, 0)):
        limit = limits[y : y + AU_CELLS, x : x + AU_CELLS, None]
        weight = _TRUNCATION / 2 / limit
        signed = jnp.minimum(inner, limit) * weight
        signed_sum = signed_sum + signed
        unsigned_sum = unsigned_sum + jnp.minimum(inner_unsigned, limit) * weight
        textures.append(_TEXTURE * jnp.sum(signed, axis=-1))
    return jnp.concatenate([signed_sum, unsigned_sum, jnp.stack(textures, axis=-1)], axis=-1)
