import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jclnf import geometry

euler_to_matrix = jax.jit(geometry.euler_to_matrix)
matrix_to_euler = jax.jit(geometry.matrix_to_euler)
retract = jax.jit(geometry.retract)

DEGENERATE = [
    [0.0, 0.0, 0.0],
    [0.0, np.pi / 2, 0.0],
    [0.0, -np.pi / 2, 0.3],
    [0.0, 1.57, 0.0],
    [np.pi, 0.0, 0.0],
]


def test_euler_to_matrix_is_the_product_of_three_turns(rng):
    for euler in rng.uniform(-1.5, 1.5, (20, 3)):
        expected = Rotation.from_euler("XYZ", euler).as_matrix()
        np.testing.assert_allclose(euler_to_matrix(jnp.array(euler)), expected, atol=1e-6)


def test_matrix_to_euler_inverts_it_up_to_a_profile(rng):
    for euler in [*rng.uniform(-1.5, 1.5, (20, 3)), np.array([0.2, 1.57, -0.1])]:
        matrix = euler_to_matrix(jnp.array(euler))
        recovered = matrix_to_euler(matrix)
        np.testing.assert_allclose(euler_to_matrix(recovered), matrix, atol=2e-6)
        if abs(euler[1]) < 1.5:
            np.testing.assert_allclose(recovered, euler, atol=1e-5)


def test_retract_is_the_nearest_rotation(rng):
    for size in (0.0, 1e-6, 0.05, 1.0, 5.0):
        start = euler_to_matrix(jnp.array(rng.uniform(-1, 1, 3)))
        turn = rng.standard_normal(3) * size
        x, y, z = turn
        u, _, vt = np.linalg.svd(np.eye(3) + np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
        np.testing.assert_allclose(retract(start, jnp.array(turn)), start @ (u @ vt), atol=2e-6)


@jax.jit
def turned(w, euler):
    matrix = retract(euler_to_matrix(euler), w)
    return jnp.concatenate([matrix.ravel(), matrix_to_euler(matrix)])


forward_mode, reverse_mode = jax.jit(jax.jacfwd(turned)), jax.jit(jax.jacrev(turned))


@pytest.mark.parametrize("euler", [*DEGENERATE, [0.1, -0.4, 0.7]])
def test_derivatives_agree_and_are_finite(euler):
    with jax.enable_x64(True):
        at, start = jnp.array([0.0, 0.0, 0.0]), jnp.array(euler)
        forward, reverse = forward_mode(at, start), reverse_mode(at, start)
        np.testing.assert_allclose(forward, reverse, atol=1e-12)
        assert np.isfinite(forward).all()
        if abs(np.cos(euler[1])) > 1e-2:
            step = 1e-6
            numeric = np.stack(
                [
                    (turned(at + step * e, start) - turned(at - step * e, start)) / (2 * step)
                    for e in jnp.eye(3)
                ],
                axis=1,
            )
            # A turn about pi wraps around; compare what does not.
            rows = slice(0, 9) if abs(euler[0]) > 3 else slice(None)
            np.testing.assert_allclose(forward[rows], numeric[rows], atol=1e-8)


def test_derivative_at_an_exact_profile_is_finite():
    matrix = jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(matrix_to_euler(matrix)[1], np.pi / 2, atol=1e-6)
    assert jnp.isfinite(jax.jacrev(matrix_to_euler)(matrix)).all()
