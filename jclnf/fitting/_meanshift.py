"""Mean shift over response maps by kernel density estimation (KDE).

Source: Saragih, Lucey, Cohn, "Deformable model fitting by regularized landmark mean-shift"
(IJCV 2011), section 4, equations 25-27.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jclnf.experts import GaussianResponses, Responses
from jclnf.geometry import bilinear, pairwise_sum

TABLE_STEP = 0.1
"""Spacing in pixels of the kernel table that OpenFace looks positions up in."""
LIKELIHOOD_FLOOR = 1e-8
"""Added to a landmark's likelihood before its logarithm is taken."""


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
    moments, _ = _kernel_moments(responses, centres, width)
    mass = moments[0, 0]
    present = mass > 0
    safe = jnp.where(present, mass, 1.0)
    mean = jnp.stack([moments[0, 1], moments[1, 0]], axis=1) / safe[:, None]
    return jnp.where(present[:, None], mean - offsets, 0.0)


def _kernel_moments(
    responses: Float[Array, "n k k"], offsets: Float[Array, "n 2"], width: Float[Array, ""]
) -> tuple[Float[Array, "2 2 n"], Float[Array, " n"]]:
    """Sums over each map under a kernel that is scaled so that its largest value in it is 1.

    Returns:
        `[j, i]`: `sum_uv w_uv r_uv v^j u^i`, where `log w_uv = -(|(u, v) - d|^2 - c) / (2 width^2)`
        and `c` is the squared distance from `d` to the nearest pixel, which comes with it. However
        far `d` lies outside the window, nothing underflows; the true kernel is
        `exp(-c / (2 width^2))` times as large.
    """
    size = responses.shape[-1]
    pixels = jnp.arange(size, dtype=offsets.dtype)[None, :, None]
    nearest = (offsets - jnp.clip(jnp.rint(offsets), 0, size - 1)) ** 2
    nearest = lax.stop_gradient(nearest)
    squared = (pixels - offsets.T[:, None]) ** 2
    along = jnp.exp(-(squared - nearest.T[:, None]) / (2 * width**2))
    # Landmarks come last from here on: it is them that stand side by side in vectors.
    powers = jnp.stack([along, along * pixels])
    by_column = _contract(jnp.transpose(responses, (1, 2, 0)), powers[:, 1])
    return _contract(by_column, powers[:, 0]), nearest.sum(axis=1)


def _products(terms: Float[Array, "k *s n"], factors: Float[Array, "p k n"]) -> Array:
    return jnp.einsum("k...n,pkn->...pn", terms, factors)


@bilinear(_products)
def _contract(terms: Float[Array, "k *s n"], factors: Float[Array, "p k n"]) -> Array:
    """Sums over pixels `k`, for each landmark `n` and each of the factors `p`."""
    wide = [1] * (terms.ndim - 2) + [factors.shape[0], factors.shape[-1]]
    each = [factors[:, i].reshape(wide) for i in range(len(terms))]
    return pairwise_sum([terms[i][..., None, :] * factor for i, factor in enumerate(each)])


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
    moments, beyond = _kernel_moments(responses, offsets, width)
    return moments[0, 0] * jnp.exp(-beyond / (2 * width**2))


def peak(responses: Responses) -> Float[Array, "n 2"]:
    """Position (x, y) of the largest response in each map, in map pixels."""
    if isinstance(responses, GaussianResponses):
        return responses.mean
    size = responses.shape[-1]
    index = jnp.argmax(responses.reshape(responses.shape[0], -1), axis=1)
    return jnp.stack([index % size, index // size], axis=1).astype(responses.dtype)
