import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation
from support.synthetic import random_pdm, random_pose

from jclnf.geometry import _pdm as P

project, update, pose_from_box = jax.jit(P.project), jax.jit(P.update), jax.jit(P.pose_from_box)


def test_project_is_weak_perspective(rng):
    pdm, pose = random_pdm(), random_pose(3)
    shape = jnp.asarray(rng.standard_normal(4), jnp.float32)
    rotation = Rotation.from_euler("XYZ", np.asarray(pose.rotation)).as_matrix()
    points = np.asarray(pdm.mean) + np.einsum("ncm,m->nc", pdm.components, shape)
    expected = np.array([pose.scale * (rotation @ x)[:2] + pose.translation for x in points])
    np.testing.assert_allclose(project(pdm, pose, shape), expected, atol=1e-4)


def test_jacobian_is_the_derivative_of_the_updated_projection(rng):
    pdm = random_pdm()

    @jax.jit
    @jax.jacfwd
    def derivative(delta, pose, shape):
        return P.project(pdm, *P.update(pdm, pose, shape, delta))

    for seed in range(4):
        pose = random_pose(seed)
        shape = jnp.asarray(rng.standard_normal(4), jnp.float32)
        expected = derivative(jnp.zeros(10), pose, shape)
        np.testing.assert_allclose(jax.jit(P.jacobian)(pdm, pose, shape), expected, atol=2e-4)


def test_update_clamps_the_shape_but_not_the_pose():
    pdm, pose = random_pdm(), random_pose()
    delta = jnp.array([5.0, 0, 0, 0, 900.0, 0, 1e6, -1e6, 1.0, 0])
    moved, shape = update(pdm, pose, jnp.zeros(4), delta)
    limit = 3 * np.sqrt(pdm.eigenvalues)
    np.testing.assert_allclose(shape, [limit[0], -limit[1], 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(moved.scale, pose.scale + 5)
    np.testing.assert_allclose(moved.translation[0], pose.translation[0] + 900)


def test_pose_from_box_fills_the_box(rng):
    pdm = random_pdm()
    for rotation in rng.uniform(-1, 1, (5, 3)):
        box = np.array([30.0, -20.0, 90.0, 130.0])
        pose = pose_from_box(pdm, jnp.asarray(box), jnp.asarray(rotation))
        points = np.asarray(project(pdm, pose, pdm.mean_shape()))
        extent = np.ptp(points, axis=0)
        np.testing.assert_allclose(
            (points.max(0) + points.min(0)) / 2, box[:2] + box[2:] / 2, atol=1e-3
        )
        flat = np.ptp(np.asarray(pdm.mean) @ np.asarray(pose.matrix[:2]).T, axis=0)
        np.testing.assert_allclose(pose.scale, (box[2:] / flat).mean(), rtol=1e-5)
        np.testing.assert_allclose(extent, pose.scale * flat, rtol=1e-5)
        np.testing.assert_allclose(pose.rotation, rotation, atol=1e-5)
