import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import random_pdm, random_pose

from jclnf.experts._base import landmark_weights
from jclnf.fitting import _rlms as rlms
from jclnf.geometry import jacobian


@pytest.fixture
def problem(rng):
    pdm, pose = random_pdm(), random_pose(1)
    shape = jnp.asarray(rng.standard_normal(4) * 3, jnp.float32)
    shifts = jnp.asarray(rng.standard_normal((20, 2)) * 2, jnp.float32)
    weights = rng.uniform(0.2, 2.0, 20).astype(np.float32)
    weights[[3, 11]] = 0
    return pdm, pose, shape, shifts, jnp.asarray(weights)


def dense(problem, columns, prior):
    pdm, pose, shape, shifts, weights = problem
    J = np.asarray(jax.jit(jacobian)(pdm, pose, shape), np.float64).reshape(40, -1)[:, :columns]
    W = np.diag(np.repeat(np.asarray(weights, np.float64), 2))
    parameters = np.concatenate([np.zeros(6), shape])[:columns]
    right = J.T @ W @ np.asarray(shifts, np.float64).ravel() - prior * parameters
    return np.linalg.solve(J.T @ W @ J + np.diag(prior), right)


def test_nonrigid_step_solves_the_normal_equations(problem):
    pdm = problem[0]
    prior = np.concatenate([np.zeros(6), 25 / np.asarray(pdm.eigenvalues)])

    @jax.jit
    def stepped(pdm, pose, shape, shifts, weights):
        products = rlms.mode_products(pdm, weights)
        return rlms.nonrigid_step(pdm, pose, shape, shifts, weights, products, jnp.float32(25))

    step = stepped(*problem)
    np.testing.assert_allclose(step, dense(problem, 10, prior), rtol=2e-3, atol=2e-5)


def test_rigid_step_solves_the_normal_equations(problem):
    step = jax.jit(rlms.rigid_step)(*problem)
    np.testing.assert_allclose(step, dense(problem, 6, np.zeros(6)), rtol=2e-3, atol=2e-5)


def test_landmark_weights():
    confidence, visible = jnp.array([0.2, 0.5, 0.9]), jnp.array([True, False, True])
    np.testing.assert_allclose(landmark_weights(confidence, visible, jnp.array(0.0)), [1, 0, 1])
    np.testing.assert_allclose(
        landmark_weights(confidence, visible, jnp.array(2.0)), [0.4, 0, 1.8], rtol=1e-6
    )
