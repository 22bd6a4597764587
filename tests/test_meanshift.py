from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jclnf.fitting import _meanshift as meanshift

mean_shift = jax.jit(meanshift.mean_shift, static_argnames="tabulated")


def slow_mean_shift(response, d, width, kernel_at=None):
    """The definition, one pixel after the other, in double precision."""
    kernel_at = d if kernel_at is None else kernel_at
    mass, mean = 0.0, np.zeros(2)
    for v in range(response.shape[0]):
        for u in range(response.shape[1]):
            squared = (u - kernel_at[0]) ** 2 + (v - kernel_at[1]) ** 2
            weight = np.exp(-squared / (2 * width**2)) * response[v, u]
            mass += weight
            mean += weight * np.array([u, v])
    return mean / mass - d, mass


@pytest.fixture
def maps(rng):
    responses = rng.uniform(0, 1, (6, 9, 9)).astype(np.float32)
    offsets = np.array([[4, 4], [0, 8], [3.234, 5.871], [7.7, 0.04], [-2.5, 4], [11.0, 9.5]])
    return responses, offsets.astype(np.float32)


def test_exact_mean_shift_and_likelihood(maps):
    responses, offsets = maps
    shifts, masses = mean_shift(jnp.asarray(responses), jnp.asarray(offsets), jnp.float32(1.5))
    for i, (response, d) in enumerate(zip(responses, offsets, strict=True)):
        expected, mass = slow_mean_shift(response, d.astype(float), 1.5)
        np.testing.assert_allclose(shifts[i], expected, atol=1e-5)
        np.testing.assert_allclose(masses[i], mass, rtol=1e-4)


def test_tabulated_kernel_is_that_of_the_nearest_tenth(maps):
    responses, offsets = maps
    shifts, _ = mean_shift(
        jnp.asarray(responses), jnp.asarray(offsets), jnp.float32(1.5), tabulated=True
    )
    for i, (response, d) in enumerate(zip(responses, offsets, strict=True)):
        limited = np.clip(d, 0, np.float32(9 - 0.1)).astype(float)
        rounded = np.floor(limited / 0.1 + 0.5) * 0.1
        expected, _ = slow_mean_shift(response, limited, 1.5, kernel_at=rounded)
        np.testing.assert_allclose(shifts[i], expected, atol=1e-5)


def test_table_entries_are_found_by_division_even_when_compiled():
    """1.8499999 / 0.1 is below 18.5 in single precision; multiplied by 10 it would be 18.5."""
    response = np.zeros((1, 7, 7), np.float32)
    response[0, 2, 3] = response[0, 1, 3] = 1
    offset = np.array([[3.0, 1.8499999]], np.float32)
    shift, _ = jax.jit(partial(meanshift.mean_shift, tabulated=True))(
        jnp.asarray(response), jnp.asarray(offset), jnp.float32(1.0)
    )
    expected, _ = slow_mean_shift(response[0], offset[0].astype(float), 1.0, kernel_at=(3.0, 1.8))
    np.testing.assert_allclose(shift[0], expected, atol=1e-5)


def test_far_outside_the_window_it_points_back():
    response = np.full((1, 7, 7), 0.5, np.float32)
    shift, _ = mean_shift(jnp.asarray(response), jnp.array([[300.0, 3.0]]), jnp.float32(1.0))
    np.testing.assert_allclose(shift, [[6 - 300, 0.0]], atol=1e-3)


def test_an_empty_map_does_not_pull():
    def total(response):
        return mean_shift(response, jnp.array([[3.0, 3.0]]), jnp.float32(1.0))[0].sum()

    empty = jnp.zeros((1, 7, 7))
    assert total(empty) == 0
    assert np.isfinite(jax.jit(jax.grad(total))(empty)).all()


def test_gradients_are_those_of_finite_differences(maps):
    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def total(responses, offsets, width):
        shifts, mass = mean_shift(responses, offsets, width)
        return jnp.sum(jnp.sin(shifts)) + jnp.sum(jnp.log(mass))

    with jax.enable_x64(True):
        arguments = [jnp.asarray(maps[0], float), jnp.asarray(maps[1], float), jnp.array(1.5)]
        _, gradients = total(*arguments)
        for index, pick in ((0, (2, 4, 4)), (0, (4, 4, 0)), (1, (2, 0)), (1, (4, 1)), (2, ())):
            ends = []
            for step in (1e-6, -1e-6):
                moved = list(arguments)
                moved[index] = moved[index].at[pick].add(step)
                ends.append(total(*moved)[0])
            numeric = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(gradients[index][pick], numeric, rtol=1e-6, atol=1e-8)


def test_peak_is_the_largest_response(rng):
    responses = rng.uniform(0, 1, (4, 5, 5)).astype(np.float32)
    for (x, y), response in zip(meanshift.peak(jnp.asarray(responses)), responses, strict=True):
        assert response[int(y), int(x)] == response.max()
