"""The regularised update of pose and shape: non-uniform regularised landmark mean shift (NU-RLMS).

Sources: Saragih, Lucey, Cohn (IJCV 2011), equation 32, for the regularised update; Baltrusaitis,
Robinson, Morency, "Constrained Local Neural Fields for robust facial landmark detection in the
wild" (ICCVW 2013), section 3.2, for the weights.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jclnf.geometry import PDM, Pose, rigid_jacobian, solve


def mode_products(pdm: PDM, weights: Float[Array, " n"]) -> Float[Array, "3 3 m m"]:
    """`sum_i w_i V_i[c] V_i[d]^T` for each pair of coordinates `c, d`: all that the normal
    equations need of the modes, whatever the pose; constant while the weights are."""
    n, _, m = pdm.components.shape
    flat = pdm.components.reshape(n, 3 * m)
    products = (flat * weights[:, None]).T @ flat
    return products.reshape(3, m, 3, m).transpose(0, 2, 1, 3)


def rigid_step(
    pdm: PDM,
    pose: Pose,
    shape: Float[Array, " m"],
    shifts: Float[Array, "n 2"],
    weights: Float[Array, " n"],
) -> Float[Array, "6"]:
    """The pose update of weighted least squares: solves `J^T W J delta = J^T W shifts`.

    Args:
        pdm: the shape model.
        pose: the current pose.
        shape: the current shape parameters.
        shifts: mean shifts in image pixels.
        weights: weight of each landmark.
    """
    columns = rigid_jacobian(pdm, pose, shape)
    weighted = columns * weights[:, None, None]
    normal = jnp.einsum("nai,naj->ij", weighted, columns)
    return solve(normal, jnp.einsum("nai,na->i", weighted, shifts))


def nonrigid_step(
    pdm: PDM,
    pose: Pose,
    shape: Float[Array, " m"],
    shifts: Float[Array, "n 2"],
    weights: Float[Array, " n"],
    products: Float[Array, "3 3 m m"],
    regularisation: Float[Array, ""],
) -> Float[Array, " 6+m"]:
    """The joint update of pose and shape: `(J^T W J + L) delta = J^T W shifts - L p`.

    `L = diag(0, ..., 0, r / eigenvalue_1, ..., r / eigenvalue_m)`, `J` as in
    `jclnf.geometry.jacobian`. Since the modes' columns of `J` are `s R[:2] V_i`, their products
    follow from `mode_products` without the full Jacobian being formed.

    Args:
        pdm: the shape model.
        pose: the current pose.
        shape: the current shape parameters `p`.
        shifts: mean shifts in image pixels.
        weights: weight of each landmark.
        products: `mode_products(pdm, weights)`.
        regularisation: the prior's strength `r`.
    """
    return solve(*normal_equations(pdm, pose, shape, shifts, weights, products, regularisation))


def normal_equations(
    pdm: PDM,
    pose: Pose,
    shape: Float[Array, " m"],
    shifts: Float[Array, "n 2"],
    weights: Float[Array, " n"],
    products: Float[Array, "3 3 m m"],
    regularisation: Float[Array, ""],
) -> tuple[Float[Array, "6+m 6+m"], Float[Array, " 6+m"]]:
    """Both sides of `nonrigid_step`: its matrix and its right side, which vanishes where the fit
    stands still."""
    m = shape.shape[0]
    modes = pdm.components.reshape(-1, m)
    axes = pose.scale * pose.matrix[:2]
    columns = rigid_jacobian(pdm, pose, shape)
    # The first six columns of J and the shifts meet the modes in the same way: through axes^T W.
    against = jnp.concatenate([columns, shifts[..., None]], axis=-1) * weights[:, None, None]
    with_modes = jnp.einsum("ac,nak->knc", axes, against).reshape(7, -1) @ modes
    prior = regularisation / pdm.eigenvalues
    rigid = jnp.einsum("nak,nai->ki", against, columns)
    flexible = jnp.einsum("cd,cdij->ij", axes.T @ axes, products) + jnp.diag(prior)
    normal = jnp.block([[rigid[:6], with_modes[:6]], [with_modes[:6].T, flexible]])
    return normal, jnp.concatenate([rigid[6], with_modes[6] - prior * shape])
