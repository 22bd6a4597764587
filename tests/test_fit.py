"""The fit as a whole, on a face whose landmarks are known because its experts look for them."""

import dataclasses
import gc
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import default_params, planted, uncropped

import jclnf
from jclnf.experts import CCNF, PyramidExperts
from jclnf.fitting import _fit as module
from jclnf.fitting import prepared
from jclnf.fitting._mapping import one_by_one
from jclnf.geometry import pose_from_box, project
from jclnf.params import as_dtype

ARITHMETICS = ("exact", "openface")


@pytest.fixture(scope="module")
def face():
    return planted()


@pytest.fixture(scope="module")
def start(face):
    """The true box, moved and enlarged a little."""
    return (face.box + [3, -2, 0, 0]) * [1, 1, 1.04, 0.98]


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_it_finds_the_planted_landmarks(face, start, arithmetic):
    params = default_params(arithmetic=arithmetic, iterations=40)
    result = jclnf.fit(face.model, face.image, start, params)
    pdm = face.model.pdm
    started = project(pdm, pose_from_box(pdm, jnp.asarray(start), jnp.zeros(3)), pdm.mean_shape())
    error = np.linalg.norm(result.landmarks - face.landmarks, axis=1)
    assert np.linalg.norm(started - face.landmarks, axis=1).mean() > 2
    assert error.max() < 0.8
    assert jclnf.FitStatus(int(result.status)).ok
    np.testing.assert_allclose(result.pose.scale, face.pose.scale, rtol=0.01)
    np.testing.assert_allclose(result.pose.rotation, face.pose.rotation, atol=0.03)
    # The landmarks end up nearer to the peaks of their maps than they began.
    distance = np.linalg.norm(result.trace.peak_offset, axis=-1).mean(-1)
    last = np.asarray(distance[-1, 1])[np.asarray(result.trace.performed[-1, 1])][-1]
    assert last < 0.6 * distance[0, 0, 0]


def test_more_iterations_move_it_less_and_less(face, start):
    fits = {
        n: jclnf.fit(face.model, face.image, start, default_params(iterations=n)).landmarks
        for n in (1, 10, 40)
    }
    distance = [np.linalg.norm(fits[n] - fits[40], axis=1).mean() for n in (1, 10)]
    assert distance[1] < 0.2 * distance[0]
    result = jclnf.fit(face.model, face.image, start, default_params(iterations=40))
    assert jclnf.FitStatus(int(result.status)) == jclnf.FitStatus.CONVERGED
    movement = np.asarray(result.trace.movement[-1, 1])
    assert movement[-1] < 0.01 < movement[0]


def test_early_stop_performs_fewer_iterations_and_gives_the_same(face, start):
    early = jclnf.Arithmetic(early_stop=True)
    stopped = jclnf.fit(
        face.model, face.image, start, default_params(iterations=40, arithmetic=early)
    )
    full = jclnf.fit(face.model, face.image, start, default_params(iterations=40))
    done = np.asarray(stopped.trace.performed)
    assert full.trace.performed.all()
    assert 0 < done[-1, 1].sum() < 40
    for one_pass in done.reshape(-1, 40):
        assert (np.diff(one_pass.astype(int)) <= 0).all()
    np.testing.assert_array_equal(np.asarray(stopped.trace.update)[~done], 0)
    np.testing.assert_allclose(stopped.landmarks, full.landmarks, atol=0.1)
    # The pass ends after the first movement under the tolerance, not before it.
    movement = np.asarray(stopped.trace.movement[-1, 1])[done[-1, 1]]
    assert movement[-1] < 0.01 <= movement[:-1].min()


def test_result_is_consistent_with_itself(face, start):
    result = jclnf.fit(face.model, face.image, start)
    pose, points = result.pose, np.asarray(result.landmarks3d)
    np.testing.assert_allclose(
        pose.scale * points[:, :2] + pose.translation, result.landmarks, atol=1e-3
    )
    visible = np.asarray(result.visible)
    expected = np.log(np.asarray(result.landmark_likelihood)[visible] + 1e-8).mean()
    np.testing.assert_allclose(result.likelihood, expected, rtol=1e-5)
    np.testing.assert_allclose(result.trace.likelihood[-1, 1, -1], result.likelihood, rtol=1e-6)
    fetched = jax.tree.map(
        lambda a: np.asarray(a, float if a.dtype.kind == "f" else a.dtype), result.trace
    )
    for name in ("mean_shift", "update", "movement", "likelihood", "peak_offset"):
        ours, theirs = getattr(fetched, name), getattr(result.trace, name)
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == float
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    shifted = result.shifted(np.array([10.0, -4.0]))
    np.testing.assert_allclose(shifted.landmarks, result.landmarks + np.array([10, -4]), rtol=1e-6)
    np.testing.assert_allclose(shifted.pose.translation, pose.translation + np.array([10, -4]))


def test_prepared_or_not_it_is_the_same_fit(face, start):
    raw = jclnf.fit(face.model, face.image, start)
    prepared = jclnf.fit(face.model.prepare(), face.image, start)
    np.testing.assert_allclose(raw.landmarks, prepared.landmarks, atol=1e-3)


def test_vmap_agrees_with_single_fits(face, start):
    params = default_params(windows=(9, 0))
    boxes = np.stack([start + [i, -i, 0, 0] for i in range(3)])
    single = [jclnf.fit(face.model, face.image, box, params) for box in boxes]
    batched = jax.vmap(lambda box: jclnf.fit(face.model, face.image, box, params))(
        jnp.asarray(boxes)
    )
    for i, one in enumerate(single):
        np.testing.assert_allclose(batched.landmarks[i], one.landmarks, atol=1e-3)


@pytest.mark.slow
def test_jit_agrees_with_eager(face, start):
    params = default_params(windows=(9, 0), iterations=1)
    model = face.model.prepare(params)
    with jax.disable_jit():
        eager = jclnf.fit(model, face.image, start, params)
    compiled = jclnf.fit(model, face.image, start, params)
    np.testing.assert_allclose(eager.landmarks, compiled.landmarks, atol=1e-3)


def test_a_second_image_of_the_same_size_compiles_nothing(face, start, monkeypatch):
    traces = []
    hypotheses = sys.modules["jclnf.fitting._hypotheses"]
    original = hypotheses.fit_from
    monkeypatch.setattr(hypotheses, "fit_from", lambda *args: traces.append(1) or original(*args))
    params = default_params(iterations=3, windows=(9, 0))
    for i in range(4):
        crop = jclnf.crop(face.image, start + i)
        jclnf.fit(
            face.model,
            crop.image,
            [crop.box, tuple(map(float, crop.box)), crop.box.astype(float), list(crop.box)][i],
            params.replace(kernel_width=jnp.array([1.5, 1.2 + i])),
        )
    assert len(traces) == 1


def test_a_crop_gives_the_same_fit(face, start):
    image = np.pad(face.image, ((100, 300), (250, 50)))
    params = default_params(windows=(9, 0))
    whole = jclnf.fit(face.model, image, start + [250, 100, 0, 0], params)
    crop = jclnf.crop(image, start + [250, 100, 0, 0])
    cut = jclnf.fit(face.model, crop.image, crop.box, params).shifted(crop.offset)
    assert crop.image.shape != image.shape
    np.testing.assert_allclose(cut.landmarks, whole.landmarks, atol=2e-3)


def test_a_scale_without_window_is_left_out(face, start):
    params = default_params(windows=(0, 9))
    result = eqx.filter_eval_shape(jclnf.fit, face.model, jnp.asarray(face.image), start, params)
    assert result.trace.performed.shape[0] == 1


def test_equal_windows_are_scanned_with_the_same_result(face, start):
    """Scales of one window share a traced body; it has to pick each scale's own experts."""
    params = default_params(windows=(7, 7))
    together = jclnf.fit(face.model, face.image, start, params)
    first = jclnf.fit(face.model, face.image, start, params.replace(windows=(7, 0)))
    second = eqx.filter_jit(jclnf.fitting.fit_from)(
        face.model, face.image, first.pose, first.shape, params.replace(windows=(0, 7))
    )
    np.testing.assert_allclose(together.landmarks, second.landmarks, atol=1e-3)


def test_the_view_is_the_nearest_and_hides_its_landmarks(face, start):
    result = jclnf.fit(face.model, face.image, start, init=(0.0, 1.4, 0.0))
    assert int(result.trace.view[0]) == 1
    np.testing.assert_array_equal(result.trace.peak_offset[0, :, :, 0], 0)
    final_view = int(result.trace.view[-1])
    np.testing.assert_array_equal(result.visible, face.model.experts.visible[1, final_view])


def test_hypotheses_keep_the_likeliest(face, start):
    rotations = np.array([[0, 0.9, 0], [0, 0, 0], [0, -0.9, 0.4]], np.float32)
    best = jclnf.fit(face.model, face.image, start, init=rotations)
    fits = [jclnf.fit(face.model, face.image, start, init=r) for r in rotations]
    likeliest = max(fits, key=lambda one: float(one.likelihood))
    np.testing.assert_allclose(best.landmarks, likeliest.landmarks, atol=2e-3)
    assert np.linalg.norm(best.landmarks - face.landmarks, axis=1).max() < 1.0


def test_statuses(face, start):
    def status(model=face.model, image=face.image, box=start, params=None):
        fit = jclnf.fit(model, uncropped(image), box, params)
        assert fit.message.endswith(".")
        return jclnf.FitStatus(int(fit.status))

    assert status() in (jclnf.FitStatus.CONVERGED, jclnf.FitStatus.ITERATION_LIMIT)
    tiny = start * [1, 1, 0.15, 0.15]
    assert status(box=tiny) == jclnf.FitStatus.FACE_TOO_SMALL
    # Traced values cannot be checked beforehand.
    short = default_params(windows=(9, 0))
    unseen = jax.jit(lambda image: jclnf.fit(face.model, image, start, short).status)
    assert int(unseen(np.full_like(face.image, np.nan))) == jclnf.FitStatus.NOT_FINITE
    flat = np.full_like(face.image, 90.0)
    assert status(image=flat) == jclnf.FitStatus.NOTHING_SEEN
    outside = start + [5000, 5000, 0, 0]
    assert status(box=outside) == jclnf.FitStatus.NOTHING_SEEN
    # Maps that always pull to the same side drag the face away.
    biased = eqx.tree_at(
        lambda m: (m.experts.alpha, m.pdm.mean),
        face.model,
        (jnp.zeros_like(face.model.experts.alpha), face.model.pdm.mean * 0.08),
    )
    pull = eqx.tree_at(lambda m: m.experts, biased, Drag.like(face.model.experts))
    assert status(model=pull, params=short.replace(iterations=60)) == jclnf.FitStatus.DIVERGED


class Drag(jclnf.experts._base.AreaExperts):
    """Experts that always answer to the right of where they are asked."""

    centres: jax.Array
    visible: jax.Array
    confidence: jax.Array
    scalings: tuple = eqx.field(static=True)
    support: int = eqx.field(static=True, default=11)

    @staticmethod
    def like(experts):
        return Drag(experts.centres, experts.visible, experts.confidence, experts.scalings)

    def responses(self, areas, scale, view, window, *, arithmetic):
        del scale, view, arithmetic
        return jnp.zeros((areas.shape[0], window, window)).at[:, window // 2, -1].set(1.0)


def test_the_smallest_face_is_openfaces_or_that_of_a_coarser_model(face):
    def smallest(*scalings):
        return dataclasses.replace(face.model.experts, scalings=scalings).smallest_scale

    assert smallest(0.25, 0.35) == smallest(0.5, 1.0) == 0.25
    assert smallest(0.1, 0.35) == 0.1


def test_a_face_too_small_stays_as_it_was_then(face, start):
    """The finer scales do not touch it, and leave no trace."""
    result = jclnf.fit(face.model, uncropped(face.image), start * [1, 1, 0.15, 0.15])
    assert not result.trace.performed[1].any()
    assert result.trace.performed[0].all()
    assert np.isfinite(result.landmarks).all()


def test_gradients_of_the_whole_fit_are_those_of_finite_differences(face, start):
    with jax.enable_x64(True):
        model, params = as_dtype(face.model, float), as_dtype(default_params(iterations=3), float)
        image = jnp.asarray(face.image, float)
        # One direction in the space of images: a bright spot near a landmark.
        x, y = face.landmarks[2].astype(int)
        spot = jnp.zeros_like(image).at[y - 3 : y + 3, x - 2 : x + 4].set(1.0)

        @jax.jit
        @jax.value_and_grad
        def loss(at):
            settings = params.replace(kernel_width=at["width"], regularisation=at["prior"])
            experts = eqx.tree_at(lambda e: e.bias, model.experts, model.experts.bias + at["bias"])
            changed = eqx.tree_at(lambda m: m.experts, model, experts)
            shown = image + at["light"] * spot
            result = jclnf.fit(changed, shown, at["box"], settings, init=at["rotation"])
            return jnp.sum(jnp.sin(result.landmarks / 30)) + result.likelihood

        at = {
            "width": jnp.array([1.5, 1.3]),
            "prior": jnp.array([5.0, 2.0]),
            "bias": jnp.array(0.1),
            "light": jnp.array(0.3),
            "box": jnp.asarray(start, float),
            "rotation": jnp.array([0.02, -0.03, 0.01]),
        }
        _, gradient = loss(at)
        step = 1e-7  # any larger, and samples cross pixels, where interpolation has kinks
        for name, values in at.items():
            for pick in np.ndindex(values.shape):
                unit = jnp.zeros_like(values).at[pick].set(step)
                ends = [loss(at | {name: values + sign * unit})[0] for sign in (1, -1)]
                numeric = (ends[0] - ends[1]) / (2 * step)
                assert numeric != 0, name
                np.testing.assert_allclose(
                    gradient[name][pick], numeric, rtol=2e-3, atol=1e-6, err_msg=name
                )


def test_a_box_of_separate_numbers_may_be_traced(face, start):
    params = default_params(windows=(9, 0))

    def first(x):
        return jclnf.fit(face.model, face.image, (x, *map(float, start[1:])), params).landmarks[0]

    moved = jax.jit(first)(float(start[0]))
    np.testing.assert_allclose(moved, first(float(start[0])), atol=1e-3)


def test_a_fit_goes_on_from_a_pose_and_shape(face, start):
    """In the image's own pixels, whatever it is cropped to."""
    image = np.pad(face.image, ((100, 300), (250, 50)))
    box = start + [250, 100, 0, 0]
    first = jclnf.fit(face.model, image, box, default_params(windows=(9, 0)))
    rest = default_params(windows=(0, 7))
    again = jclnf.fit(face.model, image, box, rest, init=(first.pose, first.shape))
    whole = jclnf.fit(face.model, image, box)
    np.testing.assert_allclose(again.landmarks, whole.landmarks, atol=2e-3)


def test_the_start_rotations_of_the_settings_are_those_of_the_argument(face, start):
    rotations = ((0, 0.9, 0), (0.0, 0.1, 0.0))
    params = default_params(windows=(9, 0))
    given = jclnf.fit(face.model, face.image, start, params, init=rotations)
    of_settings = jclnf.fit(face.model, face.image, start, params.replace(rotations=rotations))
    frontal = jclnf.fit(face.model, face.image, start, params)
    np.testing.assert_array_equal(given.landmarks, of_settings.landmarks)
    assert np.abs(given.landmarks - frontal.landmarks).max() > 1e-4
    with pytest.raises(jclnf.errors.ParamsError, match=r"\(r, 3\)"):
        params.replace(rotations=np.zeros((0, 3)))


def test_messages_tell_what_to_do_or_nothing(face, start):
    good = jclnf.fit(face.model, face.image, start)
    for status in (jclnf.FitStatus.CONVERGED, jclnf.FitStatus.ITERATION_LIMIT):
        ended = dataclasses.replace(good, status=jnp.int32(status))
        assert ended.message.startswith("The face was fitted")
        assert not {"still", "limit", "but", "check"} & set(ended.message.split())
    doubtful = dataclasses.replace(good, confidence=jnp.float32(0.2), threshold=jnp.float32(0.5))
    assert "confidence 0.20" in doubtful.message
    assert "check that the box" in doubtful.message
    sure = dataclasses.replace(doubtful, confidence=jnp.float32(0.9))
    assert sure.message == good.message
    failed = dataclasses.replace(doubtful, status=jnp.int32(jclnf.FitStatus.DIVERGED))
    assert failed.message.startswith("The fit left its start")
    both = jax.tree.map(lambda *a: jnp.stack(a), sure, doubtful)
    assert both.message == (sure.message, doubtful.message)


def test_a_model_is_prepared_once_and_not_kept_alive(face, monkeypatch):
    model = dataclasses.replace(face.model, name="of its own")
    prepare, calls = jclnf.Model.prepare, []
    monkeypatch.setattr(
        jclnf.Model, "prepare", lambda self, p: calls.append(self) or prepare(self, p)
    )
    params = default_params(iterations=1)
    first = prepared(model, params)
    assert prepared(model, params.replace(iterations=2)) is first
    assert prepared(model, params.replace(windows=(9, 0))) is not first
    assert jax.jit(lambda x: jnp.sum(prepared(model, params).pdm.mean) + x)(1.0) is not None
    assert len(calls) == 2
    assert not isinstance(first.experts, type(model.experts))
    # Under a transformation the model is as it is.
    seen = []
    jax.eval_shape(lambda m: seen.append(prepared(m, params) is m), model)
    assert seen == [True]
    known = len(module._PREPARED)
    calls.clear()
    del model
    gc.collect()
    assert len(module._PREPARED) < known


@pytest.mark.parametrize("kind", [CCNF, PyramidExperts])
def test_this_version_of_xla_knows_all_options(kind):
    assert module.known_options(kind.cpu_options) == kind.cpu_options != ()


def test_an_option_that_xla_does_not_know_is_left_out(face, start, monkeypatch):
    options = (("xla_cpu_prefer_vector_width", 256), ("xla_no_such_option", True))
    monkeypatch.setattr(type(face.model.experts), "cpu_options", options)
    assert module.cpu_options(face.model) == (options[:1] if one_by_one() else ())
    assert jclnf.fit(face.model, face.image, start, default_params(iterations=1)).ok


def test_unusable_input_is_named(face, start):
    with pytest.raises(jclnf.errors.ImageError, match="colour"):
        jclnf.fit(face.model, np.zeros((20, 20, 3)), start)
    with pytest.raises(jclnf.errors.ImageError, match="booleans"):
        jclnf.fit(face.model, np.zeros((20, 20), bool), start)
    with pytest.raises(jclnf.errors.ImageError, match="uint16"):
        jclnf.fit(face.model, jnp.zeros((20, 20), jnp.uint16), start)
    with pytest.raises(jclnf.errors.ImageError, match=r"scaled to 0\.\.1"):
        jclnf.fit(face.model, face.image / 255, start)
    with pytest.raises(jclnf.errors.BoxError, match="outside the image"):
        jclnf.fit(face.model, face.image, start + [5000, 0, 0, 0])
    for box in (
        "face",
        [[1], 2, 3, 4],
        [1, 2, 3],
        [0, 0, 0, 10],
        [0, 0, np.nan, 5],
        [0, 0, 5, np.inf],
    ):
        for image in (face.image, jnp.asarray(face.image)):
            with pytest.raises(jclnf.errors.BoxError, match="box"):
                jclnf.fit(face.model, image, box)
    with pytest.raises(jclnf.errors.ParamsError, match="three Euler angles"):
        jclnf.fit(face.model, face.image, start, init=0.3)
    one_scale = jclnf.FitParams(jnp.ones(1), jnp.ones(1), jnp.ones(1), windows=(7,))
    with pytest.raises(jclnf.errors.ParamsError, match="1 scales, the model has 2"):
        jclnf.fit(face.model, face.image, start, one_scale)
    with pytest.raises(jclnf.errors.ParamsError, match=r"\(r, 3\)"):
        jclnf.fit(face.model, face.image, start, init=np.zeros((2, 4)))
    with pytest.raises(jclnf.errors.ParamsError, match="4 modes"):
        jclnf.fit(face.model, face.image, start, init=(face.pose, jnp.zeros(7)))


def test_a_model_in_double_precision(face):
    """That its fits are is tested in `test_precision`."""
    with jax.enable_x64(True):
        exact = face.model.astype(jnp.float64)
        assert exact.pdm.mean.dtype == exact.experts.weights.dtype == jnp.float64
        assert exact.astype(jnp.float32).pdm.mean.dtype == jnp.float32
        assert exact.experts.visible.dtype == bool
