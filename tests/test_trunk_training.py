"""The training of a trunk on photographs: geometry, gradients and folding against slow oracles, and
a training that was cut short against one that was not."""

import sys
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jclnf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest.importorskip("experiments.training.trunk", reason="installed without experiments/")

from experiments.training.trunk import fine
from experiments.training.trunk.assemble import model_of
from experiments.training.trunk.augment import Example, example, mirrored, random_view
from experiments.training.trunk.evaluate import measures
from experiments.training.trunk.faces import held_out
from experiments.training.trunk.fine import EYE, REGIONS, refined
from experiments.training.trunk.frame import Frame, Similarity, cut, mean_shape, nearest_similarity
from experiments.training.trunk.locate import Trained, in_views
from experiments.training.trunk.loss import (
    SHARE,
    in_cells,
    in_pixels,
    map_loss,
    opening_error,
    positions,
)
from experiments.training.trunk.network import (
    TINY,
    Network,
    batch_normalised,
    convolve,
    folded_layer,
    initial_weights,
    normalising_layer,
    seen_as,
)
from experiments.training.trunk.train import Schedule, train
from jclnf.geometry import apply_similarity
from jclnf.params import EXACT
from jclnf.train._faces import MIRROR_68
from jclnf.train._networks import folded

map_loss = jax.jit(map_loss, static_argnums=3)
gradient_of_map_loss = jax.jit(jax.grad(map_loss), static_argnums=3)


def first_weights(network, seed):
    """`initial_weights` in one program."""
    return jax.jit(lambda key: initial_weights(network.shapes, key))(jax.random.key(seed))


SMALL = Network(widths=(4, 6, 8), blocks=(0, 1, 1), joined=6, landmarks=3)


@pytest.fixture
def face(rng):
    """68 points in general position, symmetric but for noise, chin down."""
    half = rng.normal(0, 20, (68, 2))
    points = (half + half[MIRROR_68] * [-1, 1]) / 2
    points[36:48, 1] -= 40
    points[8] = [0, 60]
    return points + rng.normal(0, 1, points.shape) + 150


def test_similarity_takes_points_back(face):
    view = Similarity(1.3 * np.exp(0.4j), 12 - 7j)
    np.testing.assert_allclose(view.inverse()(view(face)), face, atol=1e-9)
    found = nearest_similarity(face, view(face))
    np.testing.assert_allclose([found.turn, found.shift], [view.turn, view.shift], atol=1e-9)


def test_turning_about_a_point_moves_it_by_the_shift_alone():
    view = Similarity(0.8 + 0.3j, 5 + 2j)
    moved = view.about(20 + 30j, 1.2 * np.exp(-0.5j), 4 - 3j)
    np.testing.assert_allclose(
        moved(np.array([[20.0, 30]])), view(np.array([[20.0, 30]])) + [4, -3]
    )


def test_mean_shape_is_upright_and_its_own_mirror_image(face):
    faces = np.stack([Similarity(np.exp(1j * a) * 2, 3 + a)(face) for a in (0.0, 0.7, -2.0)])
    mean = mean_shape(faces)
    np.testing.assert_allclose(mean[MIRROR_68] * [-1, 1], mean, atol=1e-9)
    down = mean[8] - mean[36:48].mean(0)
    assert down[1] > 0
    assert abs(down[0]) < 1e-9


@pytest.mark.parametrize("size", [0.6, 1.0, 2.7])
def test_a_mark_is_where_its_point_is_in_a_crop(face, size):
    """Blobs painted at the points of an image are found at the points of its crop."""
    frame = Frame.of(mean_shape(face[None]), 96, 1.45)
    view = Similarity(size * np.exp(0.3j), 60 + 40j)
    inside = np.array([[30.0, 35.0], [60.0, 52.0], [48.0, 70.0]])
    for at in inside:
        x, y = view(at[None])[0]
        rows, columns = np.mgrid[:400, :400]
        blob = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (2 * size) ** 2))
        crop = cut(np.rint(blob).astype(np.uint8), view, frame.side).astype(float)
        y, x = np.mgrid[: frame.side, : frame.side]
        centre = [(crop * x).sum() / crop.sum(), (crop * y).sum() / crop.sum()]
        np.testing.assert_allclose(centre, at, atol=0.1)


def test_examples_keep_their_points_on_what_they_mark(face):
    """The image's two channels of position, read in the crop, are the points' own: for crops that
    are not worsened, mirrored or not."""
    frame = Frame.of(mean_shape(face[None]), 64, 1.45)
    for seed in range(20):
        view = random_view(face, frame, np.random.default_rng(seed))
        points = view.inverse()(face)
        np.testing.assert_allclose(view(points), face, atol=1e-8)
        ramp = np.tile(np.arange(300, dtype=np.float32), (300, 1))
        crop = cut(ramp, view, frame.side)
        flipped, moved = mirrored(crop, points)
        ok = ((points > 1) & (points < 62)).all(1)
        for image, at, index in ((crop, points, np.arange(68)), (flipped, moved, MIRROR_68)):
            read = cv2.remap(
                image, at[:, 0].astype(np.float32), at[:, 1].astype(np.float32), cv2.INTER_LINEAR
            ).ravel()
            usable = ok[index]
            assert usable.sum() > 20
            np.testing.assert_allclose(read[usable], face[index][usable, 0], atol=0.1)


def test_an_example_depends_on_its_random_numbers_alone(face):
    frame = Frame.of(mean_shape(face[None]), 64, 1.45)
    image = np.random.default_rng(1).integers(0, 255, (300, 300)).astype(np.uint8)
    a, b, c = (example(image, face, frame, 2, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.points, b.points)
    assert not np.array_equal(a.image, c.image)


def test_faces_of_one_photograph_are_on_one_side():
    names = [f"afw_{photo}_{face}.jpg" for photo in range(60) for face in (1, 2, 3)]
    sides = np.array([held_out(name) for name in names]).reshape(60, 3)
    assert (sides == sides[:, :1]).all()
    assert 0 < sides[:, 0].sum() < 20


def pulled_back(function, g, *at):
    """The function at a point, and the derivatives of its product with `g`."""

    @jax.jit
    def both(g, *at):
        value, backward = jax.vjp(function, *at)
        return value, backward(g)

    return jax.tree.map(np.asarray, both(g, *at))


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_gradients_of_convolutions_are_those_of_xla(rng, side, stride):
    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
        )

    x = jnp.asarray(rng.standard_normal((6, 12, 12, 5)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((side, side, 5, 7)), jnp.float32)
    g = rng.standard_normal((6, *[12 // stride] * 2, 7)).astype(np.float32)
    wanted, theirs = pulled_back(plain, g, x, kernel)
    found, ours = pulled_back(lambda x, k: convolve(x, k, stride), g, x, kernel)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_gradients_of_the_normalisation_are_those_of_its_formula(rng):
    def formula(y, gain, bias):
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        return (y - mean) / jnp.sqrt(variance + TINY) * gain + bias

    y = jnp.asarray(2 + rng.standard_normal((4, 6, 6, 5)), jnp.float32)
    gain, bias = rng.standard_normal((2, 5)).astype(np.float32)
    g = rng.standard_normal(y.shape).astype(np.float32)
    wanted, theirs = pulled_back(formula, g, y, gain, bias)
    found, ours = pulled_back(lambda *a: batch_normalised(*a)[0], g, y, gain, bias)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_a_folded_network_is_the_normalised_one(rng):
    """With the batch's own means and variances folded in, on the same batch."""
    weights = {
        name: np.asarray(array) + 0.2 * rng.standard_normal(array.shape).astype(np.float32)
        for name, array in first_weights(SMALL, 1).items()
    }

    @jax.jit
    def both(weights, images):
        x, seen = seen_as(images), {}
        wanted = SMALL(x, normalising_layer(weights, seen))
        return SMALL(x, folded_layer(folded(weights, seen))), wanted

    found, wanted = both(weights, jnp.asarray(rng.integers(0, 255, (5, 32, 32)), jnp.uint8))
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def _maps(output, split):
    """`(b, y, x, n)`, by loops."""
    b, h, w, c = output.shape
    maps = np.zeros((b, split * h, split * w, c // split**2))
    values = np.asarray(output, float).reshape(b, h, w, split, split, -1)
    for y in range(split * h):
        for x in range(split * w):
            maps[:, y, x] = values[:, y // split, x // split, y % split, x % split]
    return maps


@pytest.mark.parametrize("split", [1, 2])
def test_positions_and_loss_are_those_of_whole_maps(rng, split):
    output = jnp.asarray(2 * rng.standard_normal((2, 6, 8, 3 * split**2)), jnp.float32)
    points = rng.uniform(0, 6 * split - 1, (2, 3, 2))
    weights = np.array([[1.0, 0, 1], [1, 1, 0]])
    maps = _maps(output, split)
    share = np.exp(maps) / np.exp(maps).sum((1, 2), keepdims=True)
    y, x = np.mgrid[: maps.shape[1], : maps.shape[2]]
    mean = np.stack([np.einsum("byxn,yx->bn", share, a) for a in (x, y)], -1)
    square = np.einsum("byxn,yx->bn", share, x**2 + y**2) - (mean**2).sum(-1)
    found, variance = jax.jit(positions, static_argnums=1)(output, split)
    np.testing.assert_allclose(found, mean, atol=1e-4)
    np.testing.assert_allclose(variance, square, atol=1e-3)

    target = np.exp(-((x - points[..., 0, None, None]) ** 2) / 2)
    target = target * np.exp(-((y - points[..., 1, None, None]) ** 2) / 2)
    target /= target.sum((2, 3), keepdims=True)
    cross = -np.einsum("bnyx,byxn->bn", target, np.log(share))
    each = np.linalg.norm(mean - points, axis=-1) + SHARE * cross
    at = jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32)
    np.testing.assert_allclose(map_loss(output, *at, split), (weights * each).sum() / 6, rtol=1e-5)


@pytest.mark.parametrize("split", [1, 2])
def test_the_gradient_of_the_loss_is_that_of_finite_differences(rng, split):
    output = jnp.asarray(rng.standard_normal((2, 4, 4, 2 * split**2)), jnp.float32)
    points = jnp.asarray(rng.uniform(0, 4 * split - 1, (2, 2, 2)), jnp.float32)
    weights = jnp.asarray([[1.0, 0.5], [0.0, 1.0]])
    gradient = np.asarray(gradient_of_map_loss(output, points, weights, split))
    for seed in range(3):
        along = np.random.default_rng(seed).standard_normal(output.shape).astype(np.float32)
        up, down = (map_loss(output + s * along, points, weights, split) for s in (0.02, -0.02))
        expected = (float(up) - float(down)) / 0.04
        np.testing.assert_allclose(float((gradient * along).sum()), expected, atol=2e-3)


def test_a_point_far_outside_the_maps_does_no_harm():
    """It has no weight; its Gaussian would vanish on the whole map."""
    output, points = jnp.zeros((1, 8, 8, 4)), jnp.full((1, 1, 2), 200.0)
    given = output, points, jnp.zeros((1, 1)), 2
    assert float(map_loss(*given)) == 0
    assert (np.asarray(gradient_of_map_loss(*given)) == 0).all()


def test_cells_and_pixels_are_each_others_reverse():
    """The middle of a crop is the middle of its maps."""
    np.testing.assert_allclose(in_cells(np.array([63.5, -0.5]), 128, 64), [31.5, -0.5])
    np.testing.assert_allclose(in_pixels(in_cells(np.array([3.0, 9.0]), 128, 64), 128, 64), [3, 9])


def _dot(index, rng):
    """A bright dot, whose place is what there is to learn."""
    del index
    at = rng.uniform(8, 24, 2)
    y, x = np.mgrid[:32, :32]
    blob = 200 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 18) + rng.uniform(0, 40, (32, 32))
    return Example(blob.astype(np.uint8), np.stack([at, at + [4, 0], at - [0, 4]]))


def test_a_training_that_was_cut_short_ends_at_the_same_weights(tmp_path):
    """It learns, too: the loss falls to a part of what it began with."""
    schedule = Schedule(epochs=12, batch=8, rate=1e-2, warm=4, average=0.9)
    losses = []
    whole = train(SMALL, _dot, 64, schedule, report=lambda _, loss, *__: losses.append(loss))
    checkpoint = tmp_path / "run" / "checkpoint.npz"
    for last in (11, None):
        again = train(
            SMALL, _dot, 64, schedule, checkpoint=checkpoint, minutes=0.0, stop_after=last
        )
    assert losses[-1] < 0.5 * losses[0]
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.npz"
    train(SMALL, _dot, 16, Schedule(epochs=1, batch=8), checkpoint=checkpoint)
    with pytest.raises(SystemExit, match="another training"):
        train(SMALL, _dot, 16, Schedule(epochs=2, batch=8), checkpoint=checkpoint)


def test_measures_of_a_mouth_that_is_drawn_open(rng):
    truth = rng.uniform(0, 100, (5, 68, 2))
    truth[:, 36], truth[:, 45] = [20.0, 30.0], [70.0, 30.0]  # 50 px apart
    truth[:, 62] = truth[:, 66] - [0, 1] * np.arange(1, 6)[:, None]
    found = truth.copy()
    found[:, 62, 1] -= 5.0
    numbers = measures(found, truth)
    assert numbers["mouth"] == pytest.approx(10.0)
    assert numbers["mouth_bias"] == pytest.approx(10.0)
    assert numbers["mouth_r"] == pytest.approx(1.0)
    assert numbers["lid"] == pytest.approx(0.0)
    assert numbers["mean"] == pytest.approx(10.0 / 68)


@pytest.fixture
def features(rng):
    """68 points whose eyes and mouth are small and apart, as a face's are."""
    points = rng.normal(0, 30, (68, 2))
    ring = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    points[36:42] = [-35, -30] + 12 * np.stack([-np.cos(ring[::3][:6]), np.sin(ring[::3][:6])], 1)
    points[48:68] = [0, 35] + [20, 10] * np.stack([-np.cos(ring), np.sin(ring)], 1)
    points[42:48] = (points[MIRROR_68] * [-1, 1])[42:48]
    points[8] = [0, 80]
    return points + rng.normal(0, 1, points.shape) + 150


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: region.name)
def test_a_region_is_cut_turned_and_sized_as_the_face_is(face, region):
    """Its landmarks' middle is the crop's; eyes are level in it, and as far apart as it says."""
    frame = region.frame(mean_shape(face[None]))
    turned = Similarity(1.7 * np.exp(0.6j), 30 - 20j)(face)
    view = region.view(turned, frame)
    at = view.inverse()(turned)
    np.testing.assert_allclose(at[list(region.landmarks)].mean(0), (region.side - 1) / 2, atol=1e-9)
    eyes = frame.mean[45] - frame.mean[36]
    np.testing.assert_allclose(eyes, [region.side / region.width, 0], atol=1e-6)
    again = nearest_similarity(frame.mean, at)
    np.testing.assert_allclose(again.turn, 1, atol=1e-9)


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: region.name)
def test_examples_of_a_region_show_its_landmarks_or_their_mirror_images(features, region):
    """A wide blob at one landmark is where that one is said to be, if the crop is not mirrored; at
    the landmark that it is the mirror image of, if it is."""
    frame = region.frame(mean_shape(features[None]))
    place, larger = 2, region.side / 64
    at = {
        False: features[region.landmarks[place]],
        True: features[MIRROR_68[region.landmarks[place]]],
    }
    rows, columns = np.mgrid[:300, :300]
    shown = {False: 0, True: 0}
    for seed in range(12):
        flipped = np.random.default_rng(seed).random() < 0.5
        x, y = at[flipped]
        image = 255 * (np.hypot(columns - x, rows - y) < 6)
        found = region.example(image.astype(np.uint8), features, frame, _Plain(seed))
        assert found.points.shape == (len(region.landmarks), 2)
        px, py = found.points[place]
        if min(px, py) / larger > 4 and max(px, py) / larger < 59:
            level = found.image.astype(float)
            y, x = np.mgrid[: region.side, : region.side]
            near = level * (np.hypot(x - px, y - py) < 30 * larger)
            centre = [(near * x).sum() / near.sum(), (near * y).sum() / near.sum()]
            np.testing.assert_allclose(centre, [px, py], atol=0.5 * larger)
            shown[flipped] += 1
    assert min(shown.values()) > 1


class _Plain:
    """Random numbers by which a crop is moved and mirrored, but not worsened."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.asked = 0

    def random(self):
        self.asked += 1
        return self.rng.random() if self.asked == 1 else 1.0

    def normal(self, *args):
        return self.rng.normal(*args)

    def choice(self, *_args, **_options):
        return 0


def test_landmarks_seen_again_are_put_back_in_their_images(features, monkeypatch):
    """With a network that finds what is bright: both eyes, in an image of any width."""
    frame = EYE.frame(mean_shape(features[None]))
    truth = features + np.array([7.0, -3.0])

    def by_position(trained, images, views):
        del trained
        found = []
        for image, view in zip(images, views, strict=True):
            crop = cut(image, view, 64).astype(float)
            y, x = np.mgrid[:64, :64]
            centre = [(crop * x).sum() / crop.sum(), (crop * y).sum() / crop.sum()]
            found.append(view(np.tile(centre, (6, 1))))
        return np.array(found), None

    monkeypatch.setattr(fine, "in_views", by_position)
    image = np.zeros((300, 320), np.uint8)
    left, right = truth[36:42].mean(0), truth[42:48].mean(0)
    rows, columns = np.mgrid[:300, :320]
    for x, y in (left, right):
        image[np.hypot(columns - x, rows - y) < 3] = 255
    trained = Trained(EYE.network, {}, frame)
    (found,) = refined(EYE, trained, [image], truth[None])
    np.testing.assert_allclose(found[36:42], np.tile(left, (6, 1)), atol=1)
    np.testing.assert_allclose(found[42:48], np.tile(right, (6, 1)), atol=1)
    rest = [*range(36), *range(48, 68)]
    np.testing.assert_array_equal(found[rest], truth[rest])


def test_the_error_of_openings_is_that_of_their_mean_distances(rng):
    found, points = rng.uniform(0, 30, (2, 4, 6, 2))
    weights = np.ones((4, 6))
    weights[1, 4] = 0.0
    pairs = ((1, 5), (2, 4))

    def opening(at):
        return np.mean([np.linalg.norm(at[:, a] - at[:, b], axis=-1) for a, b in pairs], axis=0)

    wanted = (np.abs(opening(found) - opening(points)) * [1, 0, 1, 1]).mean()
    given = [jnp.asarray(a, jnp.float32) for a in (found, points, weights)]
    error = jax.jit(jax.value_and_grad(opening_error), static_argnums=3)
    np.testing.assert_allclose(error(*given, pairs)[0], wanted, rtol=1e-5)
    shut = jnp.zeros((4, 6, 2))
    gradient = error(shut, *given[1:], pairs)[1]
    assert np.isfinite(gradient).all()


def test_an_assembled_model_sees_what_its_networks_were_trained_on(rng):
    """Its responses are where the networks' own landmarks are, in an image in which the mean face
    lies turned."""
    half = 60 * rng.standard_normal((68, 3))
    mean = mean_shape((half + half[MIRROR_68] * [-1, 1, 1])[None, :, :2])
    mean = 70 * mean / np.abs(mean).max()
    mean[36], mean[45], mean[8] = [-45, -30], [45, -30], [0, 80]
    mean -= mean.mean(0)
    frame = Frame.of(mean, 64, 1.45)
    trunk, mouth = Network((4, 6, 8), (0, 1, 1), 6), Network((4, 6, 8), (0, 1, 1), 6, landmarks=20)
    eye = mouth._replace(landmarks=6)

    def trained(network, frame, seed):
        weights = folded(first_weights(network, seed), {})
        weights["maps.kernel"] *= 100.0
        return Trained(network, weights, frame)

    regions = {
        region: trained(network, region.frame(mean), seed)
        for seed, (region, network) in enumerate(zip(REGIONS, (eye, mouth), strict=True))
    }
    coarse = trained(trunk, frame, 5)
    pdm = jclnf.PDM(
        jnp.asarray(np.column_stack([mean, half[:, 2]]), jnp.float32),
        jnp.asarray(np.linalg.qr(rng.standard_normal((204, 2)))[0].reshape(68, 3, 2), jnp.float32),
        jnp.ones(2),
    )
    model = model_of(coarse, regions, pdm, "assembled")
    image = cv2.GaussianBlur(rng.uniform(0, 255, (330, 300)).astype(np.float32), (0, 0), 9)
    image = np.clip(128 + 15 * (image - image.mean()), 0, 255).astype(np.uint8)
    place = Similarity(1.1 * np.exp(0.2j), 150 + 160j)
    points = place(mean)
    wanted, _ = in_views(coarse, [image], [frame.aligned(points)])
    scaling = model.scalings[1]
    to_image = jnp.asarray([place.turn.real / scaling, place.turn.imag / scaling], jnp.float32)
    pixels = jnp.asarray(image, jnp.float32)

    def places(scale):
        at = jnp.asarray(points, jnp.float32), to_image * (scaling / model.scalings[scale])
        given = (pixels, *at, jnp.array(scale), jnp.array(0), 3)
        responses = jax.jit(partial(model.experts.respond, arithmetic=EXACT), static_argnums=5)
        return np.asarray(at[0] + apply_similarity(at[1], responses(*given).mean))

    def apart(one, other):
        # Random networks make much of the little by which OpenCV's crops differ from ours; a pixel
        # of a crop is 3.7 of the image.
        each = np.linalg.norm(one - other, axis=1)
        return np.median(each), np.quantile(each, 0.9)

    assert np.median(np.linalg.norm(wanted[0] - points, axis=1)) > 20
    assert (np.array(apart(places(0), wanted[0])) < [1.0, 3.0]).all()
    # Parts are seen in the frame of what the whole face's network finds, and centred there.
    expected = wanted[0].copy()
    for region, network in regions.items():
        index = list(region.landmarks)
        for flip in (False, True) if region is EYE else (False,):
            seen, first = mirrored(image, wanted[0]) if flip else (image, wanted[0])
            found, _ = in_views(network, [seen], [region.view(first, network.frame)])
            if flip:
                found = found * [-1, 1] + [image.shape[1] - 1, 0]
            expected[MIRROR_68[index] if flip else index] = found[0]
    found = places(1)
    assert np.median(np.linalg.norm(expected - wanted[0], axis=1)[36:]) > 5
    assert (np.array(apart(found[:36], expected[:36])) < [1.0, 3.0]).all()
    assert (np.array(apart(found[36:48], expected[36:48])) < [1.0, 3.0]).all()
    assert (np.array(apart(found[48:], expected[48:])) < [1.0, 3.0]).all()
