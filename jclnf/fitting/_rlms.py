"""The regularised update of pose and shape: non-uniform regularised landmark mean shift (NU-RLMS).

Sources: Saragih, Lucey, Cohn (IJCV 2011), equation 32, for the regularised update; Baltrusaitis,
Robinson, Morency, "Constrained Local Neural Fields for robust facial landmark detection in the
wild" (ICCVW 2013), section 3.2, for the weights.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jclnf.geometry import PDM, Pose, product, shape3d, small_product, solve


def mode_products(pdm: PDM, weights: Float[Array, " n"]) -> Float[Array, "3 3 m m"]:
    """`sum_i w_i V_i[c] V_i[d]^T` for each pair of coordinates `c, d`: all that the normal
    equations need of the modes, whatever the pose; constant while the weights are."""
    n, _, m = pdm.components.shape
    flat = pdm.components.reshape(n, 3 * m)
    products = product((flat * weights[:, None]).T, flat)
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
    points, weighted = _homogeneous(pdm, shape, shifts, weights)
    rigid = _rigid_products(_rows(pose), product(weighted, points.T))
    return solve(rigid[:6], rigid[6])


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
    `jclnf.geometry.jacobian`, which is never formed: all of its columns are linear in the points
    `(X, 1)` or in the modes, so the products of both, summed over the landmarks, are enough.

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
    n, _, m = pdm.components.shape
    points, weighted = _homogeneous(pdm, shape, shifts, weights)
    rows, axes = _rows(pose), pose.scale * pose.matrix[:2]
    rigid = _rigid_products(rows, product(weighted, points.T))
    # The modes' columns of J are axes @ V_i.
    against = product(weighted, pdm.components.reshape(n, 3 * m)).reshape(18, m)
    of_modes = small_product(rows.transpose(0, 2, 1).reshape(42, 2), axes).reshape(7, 18)
    with_modes = product(of_modes, against)
    prior = regularisation / pdm.eigenvalues
    squared = small_product(axes.T, axes).reshape(9)
    flexible = product(squared, products.reshape(9, m * m)).reshape(m, m)
    flexible = flexible + jnp.diag(prior)
    normal = jnp.block([[rigid[:6], with_modes[:6]], [with_modes[:6].T, flexible]])
    return normal, jnp.concatenate([rigid[6], with_modes[6] - prior * shape])


def _homogeneous(
    pdm: PDM, shape: Float[Array, " m"], shifts: Float[Array, "n 2"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "4 n"], Float[Array, "6 n"]]:
    """The landmarks `(X, 1)` in the model's frame; and those and the shifts, weighted."""
    points = shape3d(pdm, shape).T
    points = jnp.concatenate([points, jnp.ones_like(points[:1])])
    return points, jnp.concatenate([points, shifts.T]) * weights[None]


def _rows(pose: Pose) -> Float[Array, "7 2 6"]:
    """What the first six columns of `J`, and the shifts, are of `(X, 1, shift)`: `rows[k] @` it is
    column `k` of `jclnf.geometry.rigid_jacobian`, and `rows[6] @` it the shift."""
    axes = pose.matrix[:2]
    x, y, z = pose.scale * axes.T
    nothing = jnp.zeros_like(x)
    # Of a turn: what axes @ (e_k x X) is of X.
    turned = [[nothing, z, -y], [-z, nothing, x], [y, -x, nothing]]
    by_pose = jnp.stack([axes, *(jnp.stack(columns, axis=1) for columns in turned)])
    fixed = jnp.asarray(_FIXED, axes.dtype)
    return fixed + jnp.pad(by_pose, [(0, 3), (0, 0), (0, 3)])


_FIXED = np.zeros((7, 2, 6))
"""Their translations, and the shift."""
_FIXED[[4, 5, 6, 6], [0, 1, 0, 1], [3, 3, 4, 5]] = 1


def _rigid_products(
    rows: Float[Array, "7 2 6"], moments: Float[Array, "6 4"]
) -> Float[Array, "7 6"]:
    """`J^T W J` of the first six columns; and, the last row, `J^T W shifts`.

    Args:
        rows: `_rows`.
        moments: `sum_i w_i (X_i, 1, shift_i) (X_i, 1)^T`.
    """
    products = small_product(rows.reshape(14, 6), moments).reshape(7, 8)
    return small_product(products, rows[:6, :, :4].reshape(6, 8).T)
