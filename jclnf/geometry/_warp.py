"""Sampling of images: areas around landmarks, and squares around faces, turned and scaled.

Conventions: points are (x, y) with pixel centres at integers, images are indexed `[y, x]`, what
lies outside an image is 0. Similarities `(a, b)` are those of `similarity_between`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.geometry._linalg import fence

FIXED_POINT_POSITION = 1024
"""Units of a pixel in which OpenCV's `warpAffine` adds up a sampling position."""
FIXED_POINT_WEIGHT = 32
"""Units of a pixel to which OpenCV's `warpAffine` rounds it before it interpolates."""

# Beyond this many pixels from the origin a position is outside every image; capping it keeps
# the fixed-point arithmetic within 32 bits.
_FARTHEST = 2.0**20

_SMALLEST_LEVEL = 8  # pixels: a face is not sampled from less


def sample_areas(
    image: Real[Array, "h w"],
    centres: Float[Array, "n 2"],
    to_image: Float[Array, "2"],
    size: int,
    *,
    fixed_point: bool = False,
) -> Float[Array, "n size size"]:
    """Cut a square area around each landmark out of the image, turned into the reference frame.

    Pixel `(u, v)` of the area around landmark `l` is read at `l + T ((u, v) - (size - 1) / 2)`,
    `T` the similarity `to_image` from reference to image pixels, bilinearly.

    Args:
        image: grey levels.
        centres: landmarks, (x, y) in image pixels.
        to_image: similarity `(a, b)` from the reference frame to the image.
        size: side of an area in reference pixels.
        fixed_point: sample as OpenCV's `warpAffine` does (and with it OpenFace), whose positions
            are sums of multiples of 1/1024 px rounded to 1/32 px. Positions then have no
            derivative. If false, sampling is exact, and differentiable in everything.
    """
    a, b = to_image
    half = (size - 1) / 2
    x0 = centres[:, 0] - (a - b) * half
    y0 = centres[:, 1] - (a + b) * half
    steps = jnp.arange(size, dtype=centres.dtype)
    u, v = steps[None, None], steps[None, :, None]
    if fixed_point:
        x, fx = _fixed_point_positions(x0, steps, a, -b)
        y, fy = _fixed_point_positions(y0, steps, b, a)
    else:
        x, fx = _split(x0[:, None, None] + a * u - b * v)
        y, fy = _split(y0[:, None, None] + b * u + a * v)
    return _bilinear(jnp.asarray(image, centres.dtype), x, y, fx, fy)


def sample_square(
    image: Real[Array, "h w"],
    centre: Float[Array, "2"],
    to_image: Float[Array, "2"],
    size: int,
) -> Float[Array, "size size"]:
    """Cut one square out of the image, turned into the reference frame, without aliasing.

    Pixel `(u, v)` is read at `centre + T ((u, v) - (size - 1) / 2)`, `T` the similarity `to_image`.
    Where that takes larger steps than a pixel, it reads from the image reduced to half, a quarter
    and so on (each the mean of 2x2 pixels of the one before), bilinearly in both neighbouring
    levels and linearly in the logarithm of the step between them. Differentiable in everything.

    Args:
        image: grey levels.
        centre: (x, y) of the square's centre in image pixels.
        to_image: similarity `(a, b)` from pixels of the square to the image's.
        size: side of the square in its own pixels.
    """
    image = jnp.asarray(image, centre.dtype)
    packed, first, heights, widths = _reductions(image)
    a, b = to_image
    steps = jnp.arange(size, dtype=centre.dtype) - (size - 1) / 2
    # Computed anew for each pixel, these few numbers would keep a loop from being vectorised.
    columns = fence(jnp.stack([centre[0] + a * steps, centre[1] + b * steps]))
    rows = fence(jnp.stack([b * steps, a * steps]))
    x = columns[0][None] - rows[0][:, None]
    y = columns[1][None] + rows[1][:, None]
    squared = a**2 + b**2
    level = 0.5 * jnp.log2(jnp.where(squared > 1, squared, 1.0))
    level = jnp.minimum(level, len(first) - 1.0)
    low = jnp.floor(lax.stop_gradient(level)).astype(jnp.int32)
    high = jnp.minimum(low + 1, len(first) - 1)

    def at(level: Int[Array, ""]) -> tuple[Array, Array, Array, Array]:
        pixel = jnp.exp2(level.astype(x.dtype))
        (at_x, fx), (at_y, fy) = (_split((p - (pixel - 1) / 2) / pixel) for p in (x, y))
        return at_x, at_y, fx, fy

    def reduced(level: Int[Array, ""]) -> Float[Array, "size size"]:
        return _bilinear(packed, *at(level), first[level], (heights[level], widths[level]))

    unreduced = _bilinear(image, *at(jnp.zeros_like(low)))
    if len(first) == 1:
        return unreduced

    def between() -> Float[Array, "size size"]:
        # Mostly the lower of the two is the image itself.
        lower = lax.cond(
            _any_of_batch(low > 0),
            lambda: jnp.where(low == 0, unreduced, reduced(jnp.maximum(low, 1))),
            lambda: unreduced,
        )
        return lower + (level - low.astype(level.dtype)) * (reduced(high) - lower)

    return lax.cond(_any_of_batch(level > 0), between, lambda: unreduced)


@custom_vmap
def _any_of_batch(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """A condition of one, and under `jax.vmap` whether it is one of any: a branch that all of a
    batch take together, where `lax.cond` would compute both for each."""
    return condition


@_any_of_batch.def_vmap
def _any(size: int, batched: Any, condition: Bool[Array, " b"]) -> tuple[Bool[Array, ""], bool]:
    del size, batched
    return _any_of_batch(condition.any()), False


def _reductions(
    image: Float[Array, "h w"],
) -> tuple[Float[Array, "rows columns"], Int[Array, " l"], Int[Array, " l"], Int[Array, " l"]]:
    """The reductions of an image, each half as large as the one before, one below the other; and of
    each level, the image itself being the first, first row, height and width.

    The image is not packed with them: of a large one that copy would be most of the work.
    """
    levels = [image]
    while min(levels[-1].shape) >= 2 * _SMALLEST_LEVEL:
        above = levels[-1]
        above = jnp.pad(above, [(0, side % 2) for side in above.shape])
        quarters = [above[y::2, x::2] for y in (0, 1) for x in (0, 1)]
        levels.append(sum(quarters[1:], quarters[0]) / 4)
    heights, widths = zip(*(level.shape for level in levels), strict=True)
    reduced = levels[1:] or [image[:1, :1]]  # of which nothing is read
    first = np.cumsum([0, 0, *heights[1:-1]])[: len(levels)]
    columns = reduced[0].shape[1]
    padded = [jnp.pad(level, ((0, 0), (0, columns - level.shape[1]))) for level in reduced]
    rows = [jnp.asarray(numbers, jnp.int32) for numbers in (first, heights, widths)]
    return jnp.concatenate(padded), rows[0], rows[1], rows[2]


def _split(
    positions: Float[Array, "*p"],
) -> tuple[Int[Array, "*p"], Float[Array, "*p"]]:
    """The whole pixel at or below each position, and the fraction above it."""
    whole = jnp.floor(jnp.clip(positions, -_FARTHEST, _FARTHEST))
    return whole.astype(jnp.int32), positions - whole


def _fixed_point_positions(
    origin: Float[Array, "n"],
    steps: Float[Array, "size"],
    per_u: Float[Array, ""],
    per_v: Float[Array, ""],
) -> tuple[Int[Array, "n v u"], Float[Array, "n v u"]]:
    """Whole pixels and fractions of `origin + per_u u + per_v v` in OpenCV's fixed point."""
    # OpenCV adds in double precision. Taking the whole pixels of the origin out beforehand
    # leaves sums so small that single precision rounds them alike.
    whole = jnp.floor(jnp.clip(origin, -_FARTHEST, _FARTHEST))
    rows = jnp.rint(FIXED_POINT_POSITION * (per_v * steps[None] + (origin - whole)[:, None]))
    columns = jnp.rint(FIXED_POINT_POSITION * (per_u * steps))
    rounding = FIXED_POINT_POSITION // FIXED_POINT_WEIGHT
    total = rows[:, :, None].astype(jnp.int32) + columns[None, None].astype(jnp.int32)
    total = total + rounding // 2
    units = total // rounding
    pixels = whole[:, None, None].astype(jnp.int32) + units // FIXED_POINT_WEIGHT
    fractions = (units % FIXED_POINT_WEIGHT).astype(origin.dtype) / FIXED_POINT_WEIGHT
    return pixels, fractions


def _bilinear(
    image: Float[Array, "h w"],
    x: Int[Array, "*p"],
    y: Int[Array, "*p"],
    fx: Float[Array, "*p"],
    fy: Float[Array, "*p"],
    first: Any = 0,
    extent: tuple[Any, Any] | None = None,
) -> Float[Array, "*p"]:
    """Bilinear reading of an image, or of the one of size `extent` that begins at row `first`."""
    height, width = image.shape if extent is None else extent
    flat, columns = image.reshape(-1), image.shape[1]

    def pixel(y: Int[Array, "*p"], x: Int[Array, "*p"]) -> Float[Array, "*p"]:
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        index = columns * (first + jnp.clip(y, 0, height - 1)) + jnp.clip(x, 0, width - 1)
        found = flat.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return jnp.where(inside, found, 0.0)

    top = pixel(y, x) * (1 - fx) + pixel(y, x + 1) * fx
    bottom = pixel(y + 1, x) * (1 - fx) + pixel(y + 1, x + 1) * fx
    return top * (1 - fy) + bottom * fy
