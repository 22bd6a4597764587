"""How far each landmark of a fit may be off: the covariance of a Gaussian around it.

A response map is taken for a measurement of its landmark, as uncertain as it is wide, and the shape
model's variances for what was known before. Together they give a covariance of pose and shape
parameters (the inverse of the fit's curvature, as in a Laplace approximation), and that one of each
landmark:

    H = sum_i J_i^T R_i^-1 J_i + diag(0, 1 / eigenvalues),    C_i = a J_i H^-1 J_i^T + s^2 b I

with `J` as in `jclnf.geometry.jacobian` and `R_i` the covariance of response `i`, times `c`, and
with `d` square map pixels added. The four numbers are calibrated on annotated faces: maps are
trained to lead to the landmark and not to be as wide as their errors, which are not independent,
either.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jclnf.experts import GaussianResponses, Responses
from jclnf.geometry import PDM, Pose, apply_similarity, jacobian, precise, product, solve


class Uncertainty(eqx.Module):
    """Calibration of the covariances of a model's landmarks."""

    inflation: Float[Array, ""]
    """`a`: factor on the covariance that pose and shape parameters leave."""
    residual: Float[Array, ""]
    """`b`: variance in square millimetres that no shape explains."""
    spread: Float[Array, ""]
    """`c`: factor on the covariance of a response."""
    floor: Float[Array, ""]
    """`d`: variance in square map pixels of the narrowest response."""


def uncalibrated() -> Uncertainty:
    """For a model that was not calibrated: responses taken as they are, and a millimetre."""
    one = jnp.ones(())
    return Uncertainty(inflation=one, residual=one, spread=one, floor=0.25 * one)


def response_covariance(responses: Responses) -> Float[Array, "n 2 2"]:
    """Covariance of (x, y) over each response map, in square map pixels; 0 for an empty one."""
    if isinstance(responses, GaussianResponses):
        return responses.covariance
    pixels = jnp.arange(responses.shape[-1], dtype=responses.dtype)
    mass = responses.sum((1, 2))
    present = mass > 0
    shares = responses / jnp.where(present, mass, 1.0)[:, None, None]
    along_x, along_y = shares.sum(1), shares.sum(2)
    from_x = pixels[None] - product(along_x, pixels)[:, None]
    from_y = pixels[None] - product(along_y, pixels)[:, None]
    xx = jnp.sum(along_x * from_x**2, axis=1)
    yy = jnp.sum(along_y * from_y**2, axis=1)
    xy = precise("nyx,ny,nx->n", shares, from_y, from_x)
    return jnp.stack([xx, xy, xy, yy], axis=-1).reshape(-1, 2, 2)


def landmark_covariance(
    pdm: PDM,
    pose: Pose,
    shape: Float[Array, " m"],
    responses: Float[Array, "n 2 2"],
    visible: Bool[Array, " n"],
    to_image: Float[Array, "2"],
    by: Uncertainty,
) -> Float[Array, "n 2 2"]:
    """The covariance of each landmark, square image pixels.

    Args:
        pdm, pose, shape: where the fit ended.
        responses: `response_covariance` of the last scale.
        visible: landmarks that were measured; the others follow from the shape model alone.
        to_image: similarity from the maps to the image.
        by: the calibration.
    """
    unit = jnp.eye(2, dtype=responses.dtype)
    measured = by.spread * responses + by.floor * unit[None]
    columns = apply_similarity(to_image, unit).T
    in_image = precise("ab,nbc,dc->nad", columns, measured, columns)
    information = jnp.where(visible[:, None, None], _inverse_2x2(in_image), 0.0)
    slopes = jacobian(pdm, pose, shape)
    prior = jnp.concatenate([jnp.zeros(6, slopes.dtype), 1 / pdm.eigenvalues])
    curvature = precise("nai,nab,nbj->ij", slopes, information, slopes) + jnp.diag(prior)
    flat = slopes.reshape(-1, slopes.shape[-1])
    spread = solve(curvature, flat.T).T.reshape(slopes.shape)
    explained = precise("nai,nbi->nab", spread, slopes)
    explained = (explained + jnp.swapaxes(explained, 1, 2)) / 2
    return by.inflation * explained + by.residual * pose.scale**2 * unit[None]


def _inverse_2x2(matrices: Float[Array, "n 2 2"]) -> Float[Array, "n 2 2"]:
    (a, b), (c, d) = jnp.moveaxis(matrices, 0, -1)
    adjugate = jnp.stack([d, -b, -c, a], axis=-1).reshape(-1, 2, 2)
    return adjugate / (a * d - b * c)[:, None, None]
