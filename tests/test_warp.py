from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from jclnf import geometry

sample_areas = jax.jit(
    geometry.sample_areas, static_argnums=3, static_argnames=("size", "fixed_point")
)
similarity_between = jax.jit(geometry.similarity_between)
"""In one program each: operations on their own would each be compiled."""


def similarity_matrix(pair):
    a, b = np.asarray(pair, np.float64)
    return np.array([[a, -b], [b, a]])


@pytest.fixture
def scene(rng):
    image = cv2.GaussianBlur(rng.uniform(0, 255, (90, 120)).astype(np.float32), (0, 0), 1.5)
    # Inside, across each border, in a corner, far outside.
    centres = [[60, 45], [3.3, 40.2], [118.9, 50], [50, -2.4], [70.25, 88.7], [0, 0], [-500, 40]]
    return image, np.array(centres, np.float32)


def test_similarity_is_the_kabsch_rotation_with_the_ratio_of_sizes(rng):
    for _ in range(10):
        source, target = rng.standard_normal((2, 30, 2)) * [[[5.0]], [[2.0]]] + 40
        a, b = source - source.mean(0), target - target.mean(0)
        u, _, vt = np.linalg.svd(a.T @ b)
        rotation = (u @ np.diag([1, np.linalg.det(u @ vt)]) @ vt).T
        scale = np.sqrt((b**2).sum() / (a**2).sum())
        pair = similarity_between(jnp.asarray(source), jnp.asarray(target))
        np.testing.assert_allclose(similarity_matrix(pair), scale * rotation, atol=1e-5)


def test_similarity_does_not_reflect(rng):
    points = rng.standard_normal((30, 2)) * [3, 1]
    pair = similarity_between(jnp.asarray(points), jnp.asarray(points * [-1, 1]))
    assert np.linalg.det(similarity_matrix(pair)) > 0


def test_similarity_of_a_point_has_a_finite_derivative():
    source = jnp.ones((5, 2))
    gradient = jax.jit(
        jax.grad(lambda s: similarity_between(s, jnp.arange(10.0).reshape(5, 2)).sum())
    )(source)
    assert np.isfinite(gradient).all()


def test_similarities_invert_and_apply(rng):
    pair = jnp.array([1.3, -0.4])
    points = rng.standard_normal((7, 2)).astype(np.float32)
    forth = geometry.apply_similarity(pair, jnp.asarray(points))
    np.testing.assert_allclose(forth, points @ similarity_matrix(pair).T, atol=1e-5)
    np.testing.assert_allclose(
        geometry.apply_similarity(geometry.invert_similarity(pair), forth), points, atol=1e-5
    )


def test_least_squares_similarity_leaves_the_smallest_distances(rng):
    source, target = rng.standard_normal((2, 30, 2))
    pair = geometry.similarity_between(source, target, least_squares=True)
    x, y = (source - source.mean(0)).T
    design = np.concatenate([np.stack([x, -y], 1), np.stack([y, x], 1)])
    expected = np.linalg.lstsq(design, (target - target.mean(0)).T.ravel())[0]
    np.testing.assert_allclose(pair, expected, rtol=1e-12)


def test_similarities_and_boxes_are_the_same_in_numpy(rng):
    """And in double precision there, whatever JAX computes in."""
    source, target = rng.standard_normal((2, 9, 2))
    pair = geometry.similarity_between(source, target)
    assert isinstance(pair, np.ndarray)
    assert pair.dtype == np.float64
    matrix = geometry.similarity_matrix(pair)
    np.testing.assert_allclose(geometry.apply_similarity(pair, source), source @ matrix.T)
    in_jax = similarity_between(jnp.asarray(source), jnp.asarray(target))
    np.testing.assert_allclose(pair, in_jax, atol=1e-5)
    points = np.array([(3.0, 9), (1, 4), (2, 20)])
    np.testing.assert_array_equal(geometry.tight_box(points), (1, 4, 2, 16))
    np.testing.assert_array_equal(geometry.tight_box(jnp.asarray(points)), (1, 4, 2, 16))


@pytest.mark.parametrize("pair", [(1.0, 0.0), (2.3, 0.7), (0.6, -0.5)])
def test_exact_sampling_is_bilinear_interpolation(scene, pair):
    image, centres = scene
    size = 15
    areas = geometry.sample_areas(jnp.asarray(image), jnp.asarray(centres), jnp.array(pair), size)
    v, u = np.mgrid[:size, :size] - (size - 1) / 2
    offsets = np.stack([u, v], -1) @ similarity_matrix(pair).T
    # Padding lets the oracle blend towards the zeros outside, as sampling is specified to.
    padded = np.pad(image, 40)
    for area, centre in zip(areas, centres, strict=True):
        x, y = np.moveaxis(offsets + centre + 40, -1, 0)
        expected = map_coordinates(padded, [y, x], order=1, mode="constant")
        np.testing.assert_allclose(area, expected, atol=2e-3)


@pytest.mark.parametrize("pair", [(1.0, 0.0), (2.3, 0.7), (0.6, -0.5), (1.4959154, -5.57e-9)])
def test_fixed_point_sampling_is_opencv_warp_affine(scene, pair):
    image, centres = scene
    size, (a, b) = 17, np.float32(pair)
    half = np.float32((size - 1) / 2)
    areas = sample_areas(
        jnp.asarray(image), jnp.asarray(centres), jnp.array(pair), size, fixed_point=True
    )
    different = 0
    for area, (x, y) in zip(np.asarray(areas), centres, strict=True):
        matrix = np.array([[a, -b, x - (a - b) * half], [b, a, y - (a + b) * half]], np.float32)
        expected = cv2.warpAffine(
            image, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        different += np.count_nonzero(np.abs(area - expected) > 0.01)
    # A position within single precision of a rounding boundary may fall on either side of it.
    assert different <= 0.001 * areas.size


def test_sampling_gradients_are_those_of_finite_differences(scene):
    image, centres = scene

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def total(image, centres, pair):
        areas = sample_areas(image, centres, pair, 5)
        return jnp.sum(jnp.sin(areas / 50))

    with jax.enable_x64(True):
        # Off the pixel centres: there, the interpolated image has a kink.
        centres = jnp.asarray(centres + 0.413, float)
        arguments = (jnp.asarray(image, float), centres, jnp.array([1.37, 0.21]))
        _, gradients = total(*arguments)
        for index, picks in ((0, [(44, 60), (40, 3)]), (1, [(0, 0), (0, 1), (1, 0)]), (2, [0, 1])):
            for pick in picks:
                step = 1e-6
                ends = []
                for sign in (1, -1):
                    moved = list(arguments)
                    moved[index] = moved[index].at[pick].add(sign * step)
                    ends.append(total(*moved)[0])
                numeric = (ends[0] - ends[1]) / (2 * step)
                np.testing.assert_allclose(gradients[index][pick], numeric, rtol=1e-5, atol=1e-7)


def test_positions_far_outside_are_zero_and_safe():
    image = jnp.ones((20, 20))
    for fixed_point in (False, True):
        areas = sample_areas(
            image,
            jnp.array([[1e9, -1e9], [-1e30, 0.0]]),
            jnp.array([1.0, 0.0]),
            5,
            fixed_point=fixed_point,
        )
        np.testing.assert_array_equal(areas, 0.0)
