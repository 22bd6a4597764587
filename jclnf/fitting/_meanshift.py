"""Mean shift over response maps by kernel density estimation (KDE).

Source: Saragih, Lucey, Cohn, "Deformable model fitting by regularized landmark mean-shift"
(IJCV 2011), section 4, equations 25-27.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jclnf.experts import GaussianResponses, Responses

TABLE_STEP = 0.1
"""Spacing in pixels of the kernel table that OpenFace looks positions up in."""
LIKELIHOOD_FLOOR = 1e-8
"""Added to a landmark's likelihood before its logarithm is taken."""


def kernel(
    positions: Float[Array, " n"], size: int, width: Float[Array, ""]
) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
    """Gaussian kernel along one axis, scaled so that its largest value in the window is 1.

    Returns:
        `exp(-((u - d)^2 - c) / (2 width^2))` at the pixels `u = 0..size-1`, and `c`, the squared
        distance from `d` to the nearest pixel. However far `d` lies outside the window, the kernel
        does not underflow; the true one is `exp(-c / (2 width^2))` times as large.
    """
    pixels = jnp.arange(size, dtype=positions.dtype)
    squared = (pixels[None] - positions[:, None]) ** 2
    nearest = squared.min(axis=1)
    scaled = jnp.exp(-(squared - lax.stop_gradient(nearest)[:, None]) / (2 * width**2))
    return scaled, lax.stop_gradient(nearest)


def centre(responses: Responses) -> float:
    """Where in its map, along x and y, a landmark's window is centred."""
    if isinstance(responses, GaussianResponses):
        return 0.0
    return (responses.shape[-1] - 1) / 2


def mean_shift(
    responses: Responses,
    offsets: Float[Array, "n 2"],
    width: Float[Array, ""],
    *,
    tabulated: bool = False,
) -> Float[Array, "n 2"]:
    """Shift from each landmark to the kernel-weighted mean of its response map.

        shift = sum_uv w_uv r_uv (u, v) / sum_uv w_uv r_uv - d,
        w_uv = exp(-|(u, v) - d|^2 / (2 width^2))

    Args:
        responses: non-negative response maps, `[landmark, y, x]`, or Gaussians, over which the
            sums are integrals: with the mean `m` and the covariance `S`, the shift is
            `width^2 (S + width^2 I)^-1 (m - d)`.
        offsets: position `d` of each landmark in its map, (x, y) in map pixels.
        width: standard deviation of the kernel in map pixels.
        tabulated: as OpenFace does, limit `d` to `[0, k - 0.1]` and centre the kernel on the
            nearest multiple of 0.1 px (not differentiable). If false, `d` is taken as it is.

    Returns:
        Shifts (x, y) in map pixels; 0 where the map is 0 wherever the kernel reaches.
    """
    if isinstance(responses, GaussianResponses):
        away, wide, _ = _against_kernel(responses, offsets, width)
        return width**2 * away / wide[:, None]
    size = responses.shape[-1]
    if tabulated:
        offsets = jnp.clip(offsets, 0.0, size - TABLE_STEP)
        # Behind the barrier it stays a division: XLA would multiply by 10, and near the middle
        # between two entries take the other one.
        step = lax.optimization_barrier(jnp.asarray(TABLE_STEP, offsets.dtype))
        centres = jnp.floor(offsets / step + 0.5) * step
    else:
        centres = offsets
    along_x, _ = kernel(centres[:, 0], size, width)
    along_y, _ = kernel(centres[:, 1], size, width)
    # The barrier keeps XLA from computing the exponentials again inside each sum.
    along_x, along_y = lax.optimization_barrier((along_x, along_y))
    by_column = along_x * jnp.einsum("nyx,ny->nx", responses, along_y)
    by_row = along_y * jnp.einsum("nyx,nx->ny", responses, along_x)
    pixels = jnp.arange(size, dtype=responses.dtype)
    mass = by_column.sum(axis=1)
    present = mass > 0
    safe = jnp.where(present, mass, 1.0)
    mean = jnp.stack([by_column @ pixels, by_row @ pixels], axis=1) / safe[:, None]
    return jnp.where(present[:, None], mean - offsets, 0.0)


def _against_kernel(
    responses: GaussianResponses, offsets: Float[Array, "n 2"], width: Float[Array, ""]
) -> tuple[Float[Array, "n 2"], Float[Array, " n"], Float[Array, "n 2"]]:
    """`det(C) C^-1 (m - d)`, `det(C)` and `m - d`, where `C = S + width^2 I`."""
    away = responses.mean - offsets
    xx, yy = (responses.covariance[:, k, k] + width**2 for k in (0, 1))
    xy = responses.covariance[:, 0, 1]
    x, y = away.T
    return jnp.stack([yy * x - xy * y, xx * y - xy * x], axis=1), xx * yy - xy**2, away


def landmark_likelihood(
    responses: Responses, offsets: Float[Array, "n 2"], width: Float[Array, ""]
) -> Float[Array, " n"]:
    """`sum_uv w_uv r_uv` of each landmark, the kernel of `mean_shift` at its exact offset;
    over Gaussians, the integral."""
    if isinstance(responses, GaussianResponses):
        against, wide, away = _against_kernel(responses, offsets, width)
        return width**2 * lax.rsqrt(wide) * jnp.exp(-(against * away).sum(1) / (2 * wide))
    size = responses.shape[-1]
    along_x, beyond_x = kernel(offsets[:, 0], size, width)
    along_y, beyond_y = kernel(offsets[:, 1], size, width)
    along_x, along_y = lax.optimization_barrier((along_x, along_y))
    mass = jnp.sum(along_x * jnp.einsum("nyx,ny->nx", responses, along_y), axis=1)
    return mass * jnp.exp(-(beyond_x + beyond_y) / (2 * width**2))


def peak(responses: Responses) -> Float[Array, "n 2"]:
    """Position (x, y) of the largest response in each map, in map pixels."""
    if isinstance(responses, GaussianResponses):
        return responses.mean
    size = responses.shape[-1]
    index = jnp.argmax(responses.reshape(responses.shape[0], -1), axis=1)
    return jnp.stack([index % size, index // size], axis=1).astype(responses.dtype)
