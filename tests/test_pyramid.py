"""The experts on one network of the face and finer ones of its parts, against plain versions."""

from functools import partial

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.networks import random_weights
from support.synthetic import random_pdm

import jclnf
from jclnf.errors import ModelFileError
from jclnf.experts import (
    GaussianResponses,
    MapNetwork,
    PyramidExperts,
    map_shapes,
)
from jclnf.experts._base import variance
from jclnf.experts._pyramid import LEAST_SPREAD, LEAST_VARIANCE
from jclnf.fitting import _meanshift as meanshift
from jclnf.fitting._scales import response_maps
from jclnf.fitting._uncertainty import response_covariance
from jclnf.geometry import apply_similarity, pose_from_box, sample_square
from jclnf.params import EXACT, as_dtype

N, WINDOW = 7, 9
LEFT, RIGHT, MOUTH = (0, 1), (3, 2), (4, 5, 6)
"""Landmarks of one region, of its mirror image in the same order, and of one without."""
WIDTHS, BLOCKS, JOINED = (4, 6, 8), (0, 1, 1), 5


def network(landmarks, side, extent, mirrored=(), split=2, seed=0, stem=0) -> MapNetwork:
    shapes = map_shapes(WIDTHS, BLOCKS, JOINED, split**2 * len(landmarks), stem)
    rng = np.random.default_rng(seed)
    weights = {
        name: jnp.asarray(a + 0.2 * rng.standard_normal(a.shape), jnp.float32)
        for name, a in random_weights(shapes, seed + 10).items()
    }
    return MapNetwork(weights, tuple(landmarks), side, extent, tuple(mirrored))


@pytest.fixture(scope="module")
def experts() -> PyramidExperts:
    return PyramidExperts(
        face=network(range(N), 32, 160.0),
        regions=(
            network(LEFT, 16, 50.0, RIGHT, seed=1),
            network(MOUTH, 32, 70.0, split=1, seed=2, stem=3),
        ),
        softness=jnp.array([1.0, 2.0]),
        centres=jnp.zeros((2, 1, 3)),
        visible=jnp.ones((2, 1, N), bool),
        confidence=jnp.ones((2, 1, N)),
        scalings=(0.1, 0.2),
        refined=(False, True),
        middle=(2.0, -5.0),
    )


@pytest.fixture(scope="module")
def face() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Image, landmarks and the similarity from the second scale's reference frame."""
    noise = np.random.default_rng(0).uniform(0, 255, (120, 130)).astype(np.float32)
    image = 127 + 12 * (cv2.GaussianBlur(noise, (0, 0), 8) - 127)
    image *= np.outer(np.hanning(120), np.hanning(130)).astype(np.float32)  # no edge at the border
    points = [[45, 45], [55, 44], [75, 46], [86, 44], [60, 80], [68, 83], [75, 79]]
    return jnp.asarray(image), jnp.array(points, jnp.float32), jnp.array([4.0, 0.6])


respond = eqx.filter_jit(
    lambda experts, image, landmarks, to_image, scale: experts.respond(
        image, landmarks, to_image, scale, jnp.array(0), WINDOW, arithmetic=EXACT
    )
)


def plain_maps(network: MapNetwork, crop: np.ndarray) -> np.ndarray:
    """`(n, g, g)`, by NumPy in double precision."""
    weights = {name: np.asarray(a, float) for name, a in network.kernels.items()}

    def layer(name, x, stride=1):
        kernel = weights[f"{name}.kernel"]
        side, (h, w, _) = len(kernel), x.shape
        before = (side - 1) // 2 if stride == 1 else 0
        x = np.pad(x, [(before, side - 1 - before)] * 2 + [(0, 0)])
        y = sum(
            x[i : i + h : stride, j : j + w : stride] @ kernel[i, j]
            for i in range(side)
            for j in range(side)
        )
        return y + weights[f"{name}.bias"]

    def relu(x):
        return np.maximum(x, 0)

    def block(x, name):
        return relu(x + layer(f"{name}b", relu(layer(f"{name}a", x))))

    crop = np.asarray(crop, float) - np.mean(crop)
    x = (crop / np.sqrt((crop**2).mean() + LEAST_VARIANCE))[..., None]
    x = relu(layer("stem", x, 2)) if "stem.bias" in weights else x
    x = relu(layer("down0", x, 2))
    fine = block(relu(layer("down1", x, 2)), "block1_0")
    x = block(relu(layer("down2", fine, 2)), "block2_0")
    x = layer("up1", x).repeat(2, 0).repeat(2, 1) + layer("skip1", fine)
    x = layer("maps", relu(layer("joined1", relu(x))))
    s, n = network.split, len(network.landmarks)
    maps = np.zeros((n, s * len(x), s * len(x)))
    for i in range(s):
        for j in range(s):
            maps[:, i::s, j::s] = x[..., (i * s + j) * n :][..., :n].transpose(2, 0, 1)
    return maps


def plain_moments(maps: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariances, from the middle of the maps."""
    share = np.exp(maps) / np.exp(maps).sum((1, 2), keepdims=True)
    y, x = np.mgrid[: maps.shape[1], : maps.shape[2]] - (maps.shape[1] - 1) / 2
    at = cell * np.stack([x, y], -1)
    means = np.einsum("nyx,yxa->na", share, at)
    covariances = [
        np.einsum("yx,yxa,yxb->ab", one, at - m, at - m)
        for one, m in zip(share, means, strict=True)
    ]
    return means, np.array(covariances)


@pytest.mark.parametrize(("split", "stem"), [(1, 0), (2, 0), (2, 4)])
def test_maps_and_moments_are_those_of_a_plain_network(split: int, stem: int) -> None:
    side = 64 if stem else 32
    made = network(range(3), side, 80.0, split=split, stem=stem)
    crops = np.random.default_rng(3).uniform(0, 255, (2, side, side)).astype(np.float32)
    moments_of = eqx.filter_jit(made.moments)
    assert (made.split, made.grid) == (split, 8 * split)
    maps = eqx.filter_jit(made.maps)(jnp.asarray(crops))
    for crop, found in zip(crops, maps, strict=True):
        expected = plain_maps(made, crop)
        laid_out = found.transpose(4, 0, 2, 1, 3).reshape(expected.shape)
        assert expected.std() > 0.1
        np.testing.assert_allclose(laid_out, expected, atol=1e-4)
        mean, covariance = plain_moments(expected, 80 / made.grid)
        moments = moments_of(found)
        np.testing.assert_allclose(moments.mean, mean, atol=1e-3)
        np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-3, atol=1e-2)


def plain_gaussians(means, covariances, window):
    found = []
    y, x = np.mgrid[:window, :window] - (window - 1) / 2
    for mean, covariance in zip(means, covariances, strict=True):
        inverse = np.linalg.inv(covariance)
        away = np.stack([x, y], -1) - mean
        level = -0.5 * np.einsum("yxa,ab,yxb->yx", away, inverse, away)
        found.append(np.exp(level - level.max()))
    return np.array([each / each.sum() for each in found])


class TestGaussianResponses:
    """Their closed forms, against sums over maps that hold all of them."""

    WIDE = 121

    @pytest.fixture
    def gaussians(self) -> GaussianResponses:
        roots = np.random.default_rng(4).uniform(-3, 3, (5, 2, 2))
        means = [[0.0, 0.0], [1.3, -2.2], [9.0, 12.0], [-1.0, 0.5], [-15.0, 4.0]]
        covariances = roots @ roots.transpose(0, 2, 1) + np.eye(2)
        return GaussianResponses(jnp.array(means), jnp.asarray(covariances, jnp.float32))

    def test_maps(self, gaussians) -> None:
        found = eqx.filter_jit(gaussians.maps)(WINDOW)
        expected = plain_gaussians(gaussians.mean, gaussians.covariance, WINDOW)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_mean_shift_and_likelihood(self, gaussians) -> None:
        offsets = jnp.array([[2.0, 1.0], [-4.0, 3.0], [0.0, 0.0], [8.0, -8.0], [5.0, 5.0]])
        width = jnp.float32(3.0)
        maps = eqx.filter_jit(gaussians.maps)(self.WIDE)
        middle = meanshift.centre(maps)
        assert (middle, meanshift.centre(gaussians)) == (60, 0)
        shifted = jax.jit(meanshift.mean_shift)
        found = shifted(gaussians, offsets, width)
        expected = shifted(maps, offsets + middle, width)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)
        assert found[1].max() > 0.1

    def test_spread_and_peak(self, gaussians) -> None:
        maps = eqx.filter_jit(gaussians.maps)(self.WIDE)
        for function, off in (
            (variance, 1e-3),
            (response_covariance, 1e-3),
            (meanshift.peak, 1.0),
        ):
            shift = 60 if function is meanshift.peak else 0
            np.testing.assert_allclose(
                jax.jit(function)(gaussians),
                np.asarray(jax.jit(function)(maps)) - shift,
                rtol=1e-3,
                atol=off,
            )


def complex_of(pairs: np.ndarray) -> np.ndarray:
    return np.asarray(pairs, float) @ [1, 1j]


def pair(number) -> np.ndarray:
    return np.stack([np.real(number), np.imag(number)], -1)


@pytest.mark.parametrize("scale", [0, 1])
def test_responses_are_those_of_the_networks_of_the_scale(experts, face, scale: int) -> None:
    image, landmarks, fine_to_image = face
    scaling = experts.scalings[scale]
    from_mm = complex(*np.asarray(fine_to_image)) * experts.scalings[1]
    centroid = np.asarray(landmarks).mean(0)
    at = complex_of(np.asarray(landmarks) - centroid) / from_mm

    def seen(network, centre, turn=1.0, flipped=False):
        middle = from_mm * complex(*centre)
        step = from_mm * turn * network.extent / network.side
        where = (
            jnp.asarray(centroid + pair(middle), jnp.float32),
            jnp.asarray(pair(step), jnp.float32),
        )
        crop = np.asarray(jax.jit(sample_square, static_argnums=3)(image, *where, network.side))
        maps = plain_maps(network, crop[:, ::-1] if flipped else crop)
        mean, covariance = plain_moments(maps, network.extent / network.grid)
        if flipped:
            mean, covariance = mean * [-1, 1], covariance * [[1, -1], [-1, 1]]
        linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        return mean @ linear.T + centre, linear @ covariance @ linear.T

    mean, covariance = seen(experts.face, np.array(experts.middle))
    coarse = mean.copy()
    if scale:
        # The similarity, by least squares, from the landmarks to where the first maps have them.
        known = np.stack([at, np.ones(N)], 1)
        turn = np.linalg.lstsq(known, complex_of(coarse), rcond=None)[0][0]
        assert abs(turn - 1) > 0.05
        eye, mouth = experts.regions
        for index, net, flipped in ((LEFT, eye, False), (RIGHT, eye, True), (MOUTH, mouth, False)):
            index = list(index)
            mean[index], covariance[index] = seen(net, coarse[index].mean(0), turn, flipped)
        assert np.abs(mean - coarse).min() > 0.1
    to_image = jnp.asarray(pair(from_mm / scaling), jnp.float32)
    found = respond(experts, image, landmarks, to_image, jnp.array(scale))
    expected = scaling * (mean - pair(at))
    np.testing.assert_allclose(found.mean, expected, atol=2e-3 * np.abs(expected).max())
    expected = scaling**2 * covariance + LEAST_SPREAD * np.eye(2)
    np.testing.assert_allclose(found.covariance, expected, atol=2e-3 * expected.max())


def test_a_similarity_of_the_image_changes_no_response(experts, face) -> None:
    image, landmarks, to_image = face
    turn, size, shift = 0.4, 1.3, np.array([70.0, 5.0])
    a, b = size * np.cos(turn), size * np.sin(turn)
    linear = np.array([[a, -b], [b, a]])
    big = cv2.warpAffine(
        np.asarray(image), np.column_stack([linear, shift]), (260, 260), flags=cv2.INTER_CUBIC
    )
    moved = jnp.asarray(np.asarray(landmarks) @ linear.T + shift, jnp.float32)
    turned = apply_similarity(jnp.array([a, b]), to_image)
    # Random networks make much of how little the two are sampled alike.
    first = respond(experts, image, landmarks, to_image, jnp.array(1))
    second = respond(experts, jnp.asarray(big), moved, turned, jnp.array(1))
    apart = np.linalg.norm(first.mean - second.mean, axis=1)
    assert np.median(apart) < 0.5
    assert np.ptp(np.asarray(first.mean)) > 2


def test_vmap_over_faces_and_scales_agrees_with_a_loop(experts, face) -> None:
    image, landmarks, to_image = face
    shifted = np.asarray(landmarks) + np.float32([0, 1, -2])[:, None, None]
    scales = np.array([1, 0, 1], np.int32)
    together = jax.jit(jax.vmap(lambda *at: respond(experts, image, at[0], to_image, at[1])))
    found = together(shifted, scales)
    for k, (at, scale) in enumerate(zip(shifted, scales, strict=True)):
        alone = respond(experts, image, jnp.asarray(at), to_image, jnp.array(scale))
        np.testing.assert_allclose(np.asarray(found.mean)[k], alone.mean, atol=1e-3)
        np.testing.assert_allclose(np.asarray(found.covariance)[k], alone.covariance, rtol=1e-3)


def test_gradients_agree_with_central_differences(experts, face) -> None:
    """By the weights, the image, the landmarks and the frame, in double precision."""
    with jax.enable_x64(True):
        floats, rest = eqx.partition(as_dtype(experts, jnp.float64), eqx.is_inexact_array)
        rng = np.random.default_rng(5)
        aim = jnp.asarray(rng.uniform(0.5, 1.5, (N, 6)))
        given = (floats, *(jnp.asarray(a, jnp.float64) for a in face))

        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
        def loss(floats, *at):
            found = respond(eqx.combine(floats, rest), *at, jnp.array(1))
            numbers = jnp.concatenate([found.mean, found.covariance.reshape(N, 4)], 1)
            return jnp.sum(aim * numbers)

        _, gradient = loss(*given)
        sizes, step = (1.0, 50.0, 1.0, 0.1), 1e-6
        for part, size in enumerate(sizes):
            move = jax.tree.map(lambda x, s=size: s * rng.uniform(-1, 1, x.shape), given[part])
            ends = []
            for sign in (1, -1):
                moved = jax.tree.map(
                    lambda x, d, s=sign: jnp.asarray(np.asarray(x) + s * step * d),
                    given[part],
                    move,
                )
                ends.append(loss(*given[:part], moved, *given[part + 1 :])[0])
            slopes = jax.tree.map(
                lambda g, d: float(np.sum(np.asarray(g) * d)), gradient[part], move
            )
            slope = sum(jax.tree.leaves(slopes))
            assert abs(slope) > 1e-4
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-4)


def test_spread_responses_weigh_less(experts) -> None:
    sharp = np.zeros((N, WINDOW, WINDOW), np.float32)
    sharp[:, 4, 4] = 1
    sharp[1] = 1 / WINDOW**2
    at = jnp.int32(1), jnp.int32(0), jnp.float32(3.0)
    weights = np.asarray(eqx.filter_jit(experts.shift_weights)(jnp.asarray(sharp), *at))
    spread = 2 * (WINDOW**2 - 1) / 12
    np.testing.assert_allclose(weights[:3], [3.0, 3.0 * 2 / (2 + spread), 3.0], rtol=1e-4)


@pytest.fixture(scope="module")
def model(experts) -> jclnf.Model:
    params = jclnf.FitParams(
        regularisation=[1.0, 0.1],
        kernel_width=[3.0, 3.0],
        weight_factor=[1.0, 1.0],
        windows=(WINDOW, WINDOW),
        iterations=2,
    )
    return jclnf.Model(random_pdm(N), experts, params, "small")


def test_a_saved_model_is_the_same_and_holds_its_weights_once(model, tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    jclnf.save_model(model, file)
    assert eqx.tree_equal(jclnf.load_model(file), model)
    held = sum(a.size for name, a in load_file(file).items() if name.startswith("experts."))
    own = [model.experts.face, *model.experts.regions]
    weights = sum(a.size for network in own for a in network.kernels.values())
    assert weights < held < weights + 20 * N


def test_a_fit_goes_to_the_means_of_the_maps(model, face) -> None:
    """With hardly a prior, as many modes as the landmarks need, and all weighted alike."""
    rng = np.random.default_rng(6)
    modes = np.linalg.qr(rng.standard_normal((3 * N, 2 * N)))[0].reshape(N, 3, 2 * N)
    pdm = jclnf.PDM(model.pdm.mean, jnp.asarray(modes, jnp.float32), jnp.full(2 * N, 1e4))
    box = jnp.array([30.0, 30.0, 70.0, 65.0])
    free = jclnf.Model(
        pdm,
        PyramidExperts(**{**vars(model.experts), "softness": jnp.full(2, 1e6)}),
        model.defaults.replace(
            regularisation=[1.0, 1.0], kernel_width=[1e3, 1e3], windows=(0, WINDOW), iterations=20
        ),
    )
    result = jclnf.fit(free, face[0], box)

    @eqx.filter_jit
    def first(model, image):
        pose = pose_from_box(model.pdm, box, jnp.zeros(3))
        at = pose, model.pdm.mean_shape(), jnp.array(1), jnp.array(0), WINDOW
        maps = response_maps(model, image, model.defaults, *at)
        return maps.base, maps.base + apply_similarity(maps.to_image, maps.responses.mean)

    base, wanted = map(np.asarray, first(free, face[0]))
    before = np.linalg.norm(base - wanted, axis=1).mean()
    after = np.linalg.norm(result.landmarks - wanted, axis=1).mean()
    assert before > 5
    assert after < 0.2 * before


@pytest.mark.parametrize("count", [3, 6])
def test_a_batch_gives_the_single_fits(model, face, count) -> None:
    """Six are more than the sizes of batches that are fitted one by one: they are two groups, the
    second of which is not full. Their crops are of one size."""
    image = np.asarray(face[0])
    boxes = np.array([30.0, 30.0, 70.0, 65.0]) + np.arange(count)[:, None] * [0.5, -0.4, 0.3, 0]
    poses = [pose_from_box(model.pdm, jnp.asarray(box), jnp.zeros(3)) for box in boxes]
    starts = [(pose, 0.1 * i * jnp.ones(model.pdm.n_modes)) for i, pose in enumerate(poses)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    batches = {
        "from boxes": jclnf.fit_images(model, [image] * count, boxes),
        "from starts": jclnf.fit_images(model, [image] * count, boxes, init=together),
    }
    for i, box in enumerate(boxes):
        single = jclnf.fit(model, image, box)
        np.testing.assert_allclose(batches["from boxes"].landmarks[i], single.landmarks, atol=2e-3)
        single = jclnf.fit(model, image, box, init=starts[i])
        np.testing.assert_allclose(batches["from starts"].landmarks[i], single.landmarks, atol=2e-3)


class TestBadOnes:
    def test_a_layer_is_missing(self, experts) -> None:
        kernels = {k: v for k, v in experts.face.kernels.items() if k != "up1.kernel"}
        with pytest.raises(ModelFileError, match=r"up1\.kernel is missing"):
            MapNetwork(kernels, tuple(range(N)), 32, 160.0)

    def test_a_layer_has_another_shape(self, experts) -> None:
        kernels = experts.face.kernels | {"block1_0a.bias": jnp.zeros(9)}
        with pytest.raises(ModelFileError, match=r"block1_0a\.bias"):
            MapNetwork(kernels, tuple(range(N)), 32, 160.0)

    def test_maps_of_other_landmarks(self, experts) -> None:
        with pytest.raises(ModelFileError, match=r"maps\.kernel"):
            MapNetwork(experts.face.kernels, tuple(range(N - 2)), 32, 160.0)

    def test_a_side_that_cannot_be_halved(self, experts) -> None:
        with pytest.raises(ModelFileError, match="halved"):
            MapNetwork(experts.face.kernels, tuple(range(N)), 36, 160.0)
        with pytest.raises(ModelFileError, match="halved"):  # once more, by the stem
            MapNetwork(experts.regions[1].kernels, MOUTH, 40, 70.0)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda: {"refined": (True,)}, "refined has 1"),
            (lambda: {"face": network(range(N - 1), 32, 160.0)}, "not all 7"),
            (lambda: {"regions": (network((5, 7), 16, 50.0),)}, "of 7"),
        ],
    )
    def test_parts_that_do_not_go_together(self, experts, change, words) -> None:
        with pytest.raises(ModelFileError, match=words):
            PyramidExperts(**{**vars(experts), **change()})
