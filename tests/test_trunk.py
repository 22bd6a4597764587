"""The trunk experts, the learned start and what they are sampled with, against plain versions."""

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import random_weights

from jclnf.errors import ModelFileError
from jclnf.experts import (
    TrunkExperts,
    check_weights,
    normalised,
    plain_layer,
    trunk_network,
    trunk_shapes,
)
from jclnf.experts._base import variance
from jclnf.experts._layers import SURROUND, self_quotient, standardised
from jclnf.experts._trunk import responses_in_windows
from jclnf.fitting import LearnedStart, decode_start, start_shapes
from jclnf.geometry import PDM, pose_from_box, project, sample_square
from jclnf.params import EXACT
from jclnf.train._networks import _normalised_layer, folded

CHANNELS = (4, 6, 8, 8, 8)

sampled = jax.jit(sample_square, static_argnums=3)


def texture(size: int = 128, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (size, size)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def experts(n: int = 5, grid: int = 16, seed: int = 0) -> TrunkExperts:
    scales = [random_weights(trunk_shapes(n, CHANNELS), 2 * seed + k) for k in range(2)]
    return TrunkExperts(
        kernels={
            name: jnp.asarray(np.stack([scale[name] for scale in scales])) for name in scales[0]
        },
        softness=jnp.array([1.0, 2.0]),
        centres=jnp.zeros((2, 1, 3)),
        visible=jnp.ones((2, 1, n), bool),
        confidence=jnp.ones((2, 1, n)),
        scalings=(0.2, 0.3),
        grid=grid,
        middle=(0.0, 6.0),
    )


class TestSampleSquare:
    def test_reads_as_opencv_where_nothing_is_reduced(self):
        image = texture()
        a, b = 0.8 * np.cos(0.3), 0.8 * np.sin(0.3)
        found = sampled(jnp.asarray(image), jnp.array([60.0, 66.0]), jnp.array([a, b]), 32)
        linear = np.array([[a, -b], [b, a]])
        offset = [60, 66] - linear @ np.full(2, 15.5)
        u = np.stack(np.meshgrid(np.arange(32), np.arange(32)), -1) @ linear.T + offset
        expected = cv2.remap(image, u.astype(np.float32), None, cv2.INTER_LINEAR)
        np.testing.assert_allclose(found, expected, atol=2.5)  # OpenCV rounds to 1/32 px
        assert np.abs(np.asarray(found) - expected).mean() < 0.3

    @pytest.mark.parametrize("step", [2, 4])
    def test_a_power_of_two_reads_means_of_blocks(self, step):
        image = texture(seed=1)
        size = 128 // step
        square = sampled(jnp.asarray(image), jnp.full(2, 63.5), jnp.array([float(step), 0.0]), size)
        blocks = image.reshape(size, step, size, step).mean((1, 3))
        np.testing.assert_allclose(square, blocks, atol=1e-3)

    def test_steps_between_levels_lie_between(self):
        image = jnp.asarray(texture(seed=2))
        centre = jnp.array([60.3, 65.1])
        close = [sampled(image, centre, jnp.array([step, 0.0]), 16) for step in (1.999, 2.001)]
        np.testing.assert_allclose(*close, atol=0.3)

    def test_it_is_zero_outside(self):
        square = sampled(jnp.ones((32, 32)), jnp.array([-100.0, 5.0]), jnp.ones(2), 16)
        assert not np.asarray(square).any()

    def test_a_batch_reads_what_each_reads_alone(self):
        """Some of it from reduced images, or none; values and derivatives. Where none is, a batch
        reads no reduced image either."""
        image, centre = jnp.asarray(texture(seed=5)), jnp.array([60.3, 65.1])

        @jax.value_and_grad
        def loss(step):
            return jnp.mean(sample_square(image, centre, jnp.stack([step, 0.1 * step]), 16) ** 2)

        together, alone = jax.jit(jax.vmap(loss)), jax.jit(loss)
        for steps in ([0.4, 0.7, 0.9], [0.5, 1.7, 3.1]):
            found = np.stack(together(jnp.array(steps)))
            each = np.stack([alone(jnp.float32(step)) for step in steps], axis=1)
            np.testing.assert_allclose(found, each, rtol=1e-5)
        traced = jax.make_jaxpr(jax.vmap(loss))(jnp.ones(3))
        assert "cond[" in str(traced)

    def test_derivatives_by_finite_differences(self):
        with jax.enable_x64(True):
            image = jnp.asarray(texture(seed=3), jnp.float64)
            aim = jnp.asarray(texture(24, seed=4), jnp.float64)

            @jax.jit
            @jax.value_and_grad
            def loss(v):
                return jnp.mean((sample_square(image, v[:2], v[2:], 24) - aim) ** 2)

            at = np.array([61.2, 60.7, 1.7, 0.4])
            gradient = np.asarray(loss(at)[1])
            for k in range(4):
                h = 1e-6
                step = h * np.eye(4)[k]
                numeric = (loss(at + step)[0] - loss(at - step)[0]) / (2 * h)
                assert gradient[k] == pytest.approx(float(numeric), rel=1e-3)


class TestResponses:
    def test_windows_are_softmaxes_of_interpolated_maps(self):
        rng = np.random.default_rng(0)
        maps = rng.standard_normal((16, 16, 3)).astype(np.float32)
        centres = np.array([[7.3, 8.6], [1.2, 14.9], [9.0, 4.0]], np.float32)
        found = jax.jit(responses_in_windows, static_argnums=2)(maps, centres, 5)
        for i, (x, y) in enumerate(centres):
            padded = np.pad(maps[..., i], 8, mode="edge")
            grid = np.stack(np.meshgrid(x + np.arange(-2, 3), y + np.arange(-2, 3)), -1)
            low = np.floor(grid).astype(int)
            fx, fy = np.moveaxis(grid - low, -1, 0)
            ix, iy = low[..., 0] + 8, low[..., 1] + 8
            logits = (
                padded[iy, ix] * (1 - fx) * (1 - fy)
                + padded[iy, ix + 1] * fx * (1 - fy)
                + padded[iy + 1, ix] * (1 - fx) * fy
                + padded[iy + 1, ix + 1] * fx * fy
            )
            expected = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(found[i], expected, rtol=2e-5)

    def test_variance(self):
        rng = np.random.default_rng(1)
        maps = rng.dirichlet(np.ones(49), 4).reshape(4, 7, 7).astype(np.float32)
        y, x = np.mgrid[:7, :7]
        for one, found in zip(maps, np.asarray(jax.jit(variance)(maps)), strict=True):
            mx, my = (one * x).sum(), (one * y).sum()
            assert found == pytest.approx((one * ((x - mx) ** 2 + (y - my) ** 2)).sum(), rel=1e-4)

    def test_a_similarity_of_the_picture_changes_no_response(self):
        """The face is seen in the reference frame, wherever and however large it is."""
        made = experts()
        image = texture(160)
        points = np.array([[60, 60], [100, 62], [80, 84], [66, 100], [95, 101]], np.float32)
        to_image = np.array([3.0, 0.2], np.float32)
        turn, size, shift = 0.4, 1.25, np.array([12.0, -7.0])
        linear = size * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        big = cv2.warpAffine(
            image, np.column_stack([linear, shift]), (240, 240), flags=cv2.INTER_CUBIC
        )
        moved = points @ linear.T + shift
        a, b = linear[0, 0], linear[1, 0]
        turned = np.array([a * 3.0 - b * 0.2, b * 3.0 + a * 0.2], np.float32)
        args = (jnp.int32(1), jnp.int32(0), 7)
        respond = eqx.filter_jit(lambda *given: made.respond(*given, *args, arithmetic=EXACT))
        first, second = (
            respond(jnp.asarray(i), jnp.asarray(p, jnp.float32), jnp.asarray(t))
            for i, p, t in ((image, points, to_image), (big, moved, turned))
        )
        np.testing.assert_allclose(first, second, atol=0.02)
        assert np.asarray(first).std() > 1e-3

    def test_spread_responses_weigh_less(self):
        made = experts(n=2)
        sharp = np.zeros((2, 7, 7), np.float32)
        sharp[0, 3, 3] = 1
        sharp[1] = 1 / 49
        weights = eqx.filter_jit(made.shift_weights)(
            jnp.asarray(sharp), jnp.int32(1), jnp.int32(0), jnp.float32(3.0)
        )
        np.testing.assert_allclose(weights, [3.0, 3.0 * 2 / (2 + 8)], rtol=1e-4)


def test_folding_gives_what_normalisation_with_the_averages_gave():
    shapes = trunk_shapes(5, CHANNELS)
    weights = random_weights(shapes)
    rng = np.random.default_rng(0)
    for name, (_, _, width) in shapes.items():
        weights[f"{name}.gain"] = jnp.asarray(rng.uniform(0.5, 1.5, width), jnp.float32)
        weights[f"{name}.bias"] = jnp.asarray(rng.normal(size=width), jnp.float32)
    x = jnp.asarray(rng.standard_normal((3, 32, 32, 1)), jnp.float32)

    @jax.jit
    def both(weights, x):
        seen: dict = {}
        in_training = trunk_network(x, _normalised_layer(weights, seen, ("maps",)))
        assert set(seen) == set(shapes) - {"maps"}
        return trunk_network(x, plain_layer(folded(weights, seen))), in_training

    plain, in_training = both(weights, x)
    np.testing.assert_allclose(plain, in_training, atol=2e-3 * float(jnp.abs(plain).max()))


def test_standardised_pictures():
    seen = jax.jit(standardised)
    found = np.asarray(seen(3 * texture(32) + 20))
    assert found.mean() == pytest.approx(0, abs=1e-5)
    assert found.std() == pytest.approx(1, rel=1e-4)
    assert not np.asarray(seen(np.full((32, 32), 77.0, np.float32))).any()


class TestEvened:
    def test_against_opencv(self):
        """The mean within the image is OpenCV's with zeros around it, over that of ones."""
        image = texture(48)

        def blurred(x: np.ndarray) -> np.ndarray:
            border = cv2.BORDER_CONSTANT
            return cv2.GaussianBlur(x, (97, 97), SURROUND * 48, borderType=border)

        around = blurred(image) / blurred(np.ones_like(image))
        expected = (image - around) / (around + 0.1 * image.mean())
        np.testing.assert_allclose(jax.jit(self_quotient)(image), expected, atol=1e-5)

    def test_light_from_one_side_matters_little(self):
        image = 1.5 * (texture(96) - 127) + 100
        light = np.linspace(0.3, 1.7, 96, dtype=np.float32)
        seen, only_standardised = jax.jit(normalised), jax.jit(standardised)
        plain, lit = (np.asarray(seen(p)) for p in (image, image * light))
        without = [np.asarray(only_standardised(p)) for p in (image, image * light)]
        assert np.abs(lit - plain).mean() < 0.25 * np.abs(without[1] - without[0]).mean()

    def test_pictures_of_one_grey_level_are_nothing(self):
        seen = jax.jit(normalised)
        for level in (0.0, 0.3, 77.0, 255.0):
            assert not np.asarray(seen(np.full((96, 96), level, np.float32))).any()


class TestStart:
    def pdm(self) -> PDM:
        rng = np.random.default_rng(0)
        mean = rng.uniform(-60, 60, (68, 3)).astype(np.float32)
        basis = np.linalg.qr(rng.standard_normal((204, 3)))[0].reshape(68, 3, 3)
        return PDM(
            jnp.asarray(mean), jnp.asarray(basis, jnp.float32), jnp.array([90.0, 50.0, 20.0])
        )

    def test_saying_nothing_is_the_frontal_mean_shape_in_the_box(self):
        pdm, box = self.pdm(), jnp.array([20.0, 30.0, 80.0, 90.0])

        @jax.jit
        def both(pdm, box):
            frontal = pose_from_box(pdm, box, jnp.zeros(3))
            decoded = project(pdm, *decode_start(pdm, box, jnp.zeros(9)))
            return decoded, project(pdm, frontal, pdm.mean_shape())

        np.testing.assert_allclose(*both(pdm, box), rtol=1e-5)

    def test_shapes_stay_within_their_limits(self):
        _, shape = jax.jit(decode_start)(
            self.pdm(), jnp.array([0.0, 0, 50, 50]), jnp.full(9, 100.0)
        )
        np.testing.assert_allclose(shape, 3 * np.sqrt([90.0, 50.0, 20.0]), rtol=1e-5)

    def test_the_same_face_at_another_size_starts_the_same(self):
        pdm = self.pdm()
        start = eqx.filter_jit(LearnedStart(random_weights(start_shapes(3), 1)))
        image = texture(100)
        large = cv2.resize(image, (200, 200), interpolation=cv2.INTER_CUBIC)
        box = np.array([20.0, 25.0, 60.0, 55.0], np.float32)
        bigger = np.concatenate([2 * box[:2] + 0.5, 2 * box[2:]]).astype(np.float32)
        one = start(pdm, jnp.asarray(image), jnp.asarray(box))
        two = start(pdm, jnp.asarray(large), jnp.asarray(bigger))
        np.testing.assert_allclose(one[0].matrix, two[0].matrix, atol=0.05)
        assert float(two[0].scale) == pytest.approx(2 * float(one[0].scale), rel=0.05)


class TestBadArrays:
    def test_a_layer_is_missing(self):
        weights = random_weights(start_shapes(3))
        del weights["conv2.bias"]
        with pytest.raises(ModelFileError, match=r"conv2\.bias"):
            LearnedStart(weights)

    def test_a_layer_has_another_shape(self):
        made = experts()
        kernels = made.kernels | {"middle1.bias": jnp.zeros((2, 9))}
        with pytest.raises(ModelFileError, match=r"middle1\.bias"):
            TrunkExperts(**{**vars(made), "kernels": kernels})

    def test_a_grid_that_cannot_be_halved(self):
        with pytest.raises(ModelFileError, match="multiple"):
            TrunkExperts(**{**vars(experts()), "grid": 20})

    def test_good_ones_have_nothing_wrong(self):
        shapes = start_shapes(3)
        assert check_weights(random_weights(shapes), shapes) is None
