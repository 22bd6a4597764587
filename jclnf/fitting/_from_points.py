"""The pose and shape of given landmarks: the shape model fitted to points instead of an image.

Damped Gauss-Newton steps on the squared distances with the shape model's own prior: the update of
`jclnf.fitting._rlms.nonrigid_step` with the distances to the points in place of the mean shifts.
Source of that update: Saragih, Lucey, Cohn (IJCV 2011), equation 32.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jclnf.fitting._rlms import mode_products, nonrigid_step
from jclnf.geometry import PDM, Pose, euler_to_matrix, product, project, update
from jclnf.runtime import check_process

DAMPING = 0.75
"""Part of each Gauss-Newton step that is taken."""
SMALLEST_GAIN = 1e-3
"""A step counts as idle if it lowers the distance by a smaller part than this."""
IDLE_STEPS = 3
"""As many idle steps, in all, end the fit."""
MAX_STEPS = 40
"""Steps provided for. Landmarks of real faces and of their parts take 7 to 13; the slowest of 450
random shapes, turned by up to 1.2 rad and seen through six points, took 24."""


def fit_points(
    pdm: PDM,
    points: Float[Array, "n 2"],
    present: Bool[Array, " n"],
    *,
    rotation: Any = (0.0, 0.0, 0.0),
) -> tuple[Pose, Float[Array, " m"]]:
    """The pose and shape whose landmarks come closest to given points.

    Minimises `sum_i |x_i - points_i|^2 + sum_j p_j^2 / eigenvalue_j` over the points that are
    present, from the mean shape in their bounding box. Each step takes `DAMPING` of the
    Gauss-Newton step. After `IDLE_STEPS` steps that lowered the distance by less than a thousandth
    (in all, not in a row) nothing changes any more. As OpenFace does, the distance after a step is
    taken with the new pose and the shape of before it, and the shape is not clamped, unlike in a
    fit to an image.

    A pure function with a fixed number of steps (`MAX_STEPS`), so that all of JAX's
    transformations apply to it; derivatives are those of the steps performed. Without `vmap`, steps
    after the end cost next to nothing.

    Args:
        pdm: the shape model.
        points: landmarks (x, y) in image pixels. What stands in rows that are not present does not
            matter.
        present: which landmarks are given. The fewer they are, the more the prior decides; without
            two points that differ in both x and y the result is not finite.
        rotation: start rotation, Euler angles (pitch, yaw, roll) in radians.

    Returns:
        The pose, and the shape parameters.
    """
    check_process()
    dtype = pdm.mean.dtype
    weights = present.astype(dtype)
    start = _start(pdm, points, present, jnp.asarray(rotation, dtype))
    # Rows that are not present may hold anything, NaN included, and NaN times 0 is NaN.
    points = jnp.where(present[:, None], points, 0.0).astype(dtype)
    products = mode_products(pdm, weights)

    def step(state: _State) -> _State:
        residuals = points - project(pdm, state.pose, state.shape)
        delta = nonrigid_step(
            pdm, state.pose, state.shape, residuals, weights, products, jnp.ones((), dtype)
        )
        pose, _ = update(pdm, state.pose, state.shape, DAMPING * delta)
        shape = state.shape + DAMPING * delta[6:]
        distance = _distance(points, present, project(pdm, pose, state.shape))
        idle = ~(distance <= (1 - SMALLEST_GAIN) * state.distance)
        return _State(pose, shape, distance, state.idle + idle.astype(jnp.int32))

    def iteration(state: _State, _: None) -> tuple[_State, None]:
        return lax.cond(state.idle < IDLE_STEPS, step, lambda state: state, state), None

    first = _State(
        start,
        pdm.mean_shape(),
        _distance(points, present, project(pdm, start, pdm.mean_shape())),
        jnp.int32(0),
    )
    last, _ = lax.scan(iteration, first, None, length=MAX_STEPS)
    return last.pose, last.shape


class _State(NamedTuple):
    """The carry from step to step."""

    pose: Pose
    shape: Float[Array, " m"]
    distance: Float[Array, ""]
    idle: Int[Array, ""]


def _start(
    pdm: PDM, points: Float[Array, "n 2"], present: Bool[Array, " n"], rotation: Float[Array, "3"]
) -> Pose:
    """The turned mean shape at the size of the points, its origin at the centre of their extent.

    Unlike `jclnf.geometry.pose_from_box`, which puts the centre of the shape's extent there.
    """
    matrix = euler_to_matrix(rotation)
    low, high = _extent(points, present)
    shape_low, shape_high = _extent(product(pdm.mean, matrix[:2].T), present)
    scale = jnp.mean((high - low) / (shape_high - shape_low))
    return Pose(scale, matrix, (low + high) / 2)


def _extent(
    points: Float[Array, "n 2"], present: Bool[Array, " n"]
) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    low = jnp.where(present[:, None], points, jnp.inf).min(0)
    high = jnp.where(present[:, None], points, -jnp.inf).max(0)
    return low, high


def _distance(
    points: Float[Array, "n 2"], present: Bool[Array, " n"], landmarks: Float[Array, "n 2"]
) -> Float[Array, ""]:
    """Norm over the coordinates that are present. It only decides when to stop: no derivative."""
    differences = jnp.where(present[:, None], lax.stop_gradient(landmarks - points), 0.0)
    return jnp.sqrt(jnp.sum(differences**2))
