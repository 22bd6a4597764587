"""Mean shift over response maps by kernel density estimation (KDE).

Source: Saragih, Lucey, Cohn, "Deformable model fitting by regularized landmark mean-shift"
(IJCV 2011), section 4, equations 25-27.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jclnf.experts import GaussianResponses, Responses
from jclnf.geometry import bilinear, pairwise_sum, precise

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
) -> tuple[Float[Array, "n 2"], Float[Array, " n"]]:
    """Shift from each landmark to the kernel-weighted mean of its response map, and its likelihood.

        shift = sum_uv w_uv r_uv (u, v) / sum_uv w_uv r_uv - d,    likelihood = sum_uv w_uv r_uv,
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
        Shifts (x, y) in map pixels, 0 where the map is 0 wherever the kernel reaches; and
        likelihoods, of the kernel as it was centred.
    """
    if isinstance(responses, GaussianResponses):
        against, wide, away = _against_kernel(responses, offsets, width)
        exponent = -(against * away).sum(1) / (2 * wide)
        return width**2 * against / wide[:, None], width**2 * lax.rsqrt(wide) * jnp.exp(exponent)
    size = responses.shape[-1]
    if tabulated:
        offsets = jnp.clip(offsets, 0.0, size - TABLE_STEP)
        # Behind the barrier it stays a division: XLA would multiply by 10, and near the middle
        # between two entries take the other one.
        step = lax.optimization_barrier(jnp.asarray(TABLE_STEP, offsets.dtype))
        centres = jnp.floor(offsets / step + 0.5) * step
    else:
        centres = offsets
    # The kernel is scaled so that its largest value in the map is 1: however far a landmark lies
    # outside, nothing underflows.
    nearest = lax.stop_gradient((centres - jnp.clip(jnp.rint(centres), 0, size - 1)) ** 2)
    # Landmarks come last from here on: it is them that stand side by side in vectors.
    away = jnp.arange(size, dtype=offsets.dtype)[None, :, None] - centres.T[:, None]
    along = jnp.exp(-(away**2 - nearest.T[:, None]) / (2 * width**2))
    maps = jnp.transpose(responses, (1, 2, 0))
    rows = along[1] * _contract(maps.transpose(1, 0, 2), along[0])
    columns = along[0] * _contract(maps, along[1])
    mass, x, y = jnp.stack([rows, columns * away[0], rows * away[1]]).sum(1)
    present = mass > 0
    from_centre = jnp.stack([x, y]) / jnp.where(present, mass, 1.0)[None]
    shifts = jnp.where(present[None], from_centre + (centres - offsets).T, 0.0).T
    return shifts, mass * jnp.exp(-nearest.sum(1) / (2 * width**2))


def _products(terms: Float[Array, "k s n"], factors: Float[Array, "k n"]) -> Float[Array, "s n"]:
    return precise("ksn,kn->sn", terms, factors)


@bilinear(_products)
def _contract(terms: Float[Array, "k s n"], factors: Float[Array, "k n"]) -> Float[Array, "s n"]:
    """Sums over pixels `k`, for each landmark `n`."""
    return pairwise_sum([terms[k] * factors[k][None] for k in range(len(terms))])


def _against_kernel(
    responses: GaussianResponses, offsets: Float[Array, "n 2"], width: Float[Array, ""]
) -> tuple[Float[Array, "n 2"], Float[Array, " n"], Float[Array, "n 2"]]:
    """`det(C) C^-1 (m - d)`, `det(C)` and `m - d`, where `C = S + width^2 I`."""
    away = responses.mean - offsets
    xx, yy = (responses.covariance[:, k, k] + width**2 for k in (0, 1))
    xy = responses.covariance[:, 0, 1]
    x, y = away.T
    return jnp.stack([yy * x - xy * y, xx * y - xy * x], axis=1), xx * yy - xy**2, away


def peak(responses: Responses) -> Float[Array, "n 2"]:
    """Position (x, y) of the largest response in each map, in map pixels."""
    if isinstance(responses, GaussianResponses):
        return responses.mean
    size = responses.shape[-1]
    index = jnp.argmax(responses.reshape(responses.shape[0], -1), axis=1)
    return jnp.stack([index % size, index // size], axis=1).astype(responses.dtype)


def model_likelihood(
    each: Float[Array, "*b n"], visible: Bool[Array, "*#b n"]
) -> Float[Array, "*b"]:
    """Mean of `log(L_i + 1e-8)` over the visible landmarks."""
    logs = jnp.where(visible, jnp.log(each + LIKELIHOOD_FLOOR), 0.0)
    return logs.sum(-1) / jnp.maximum(jnp.sum(visible, axis=-1), 1).astype(logs.dtype)
