"""Tracking: a face that moves over frames, the loop over frames, states, and the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recordings import openface_model
from support.synthetic import Planted, planted

import jclnf
from jclnf import FitParams, TrackParams
from jclnf.errors import ImageError, ParamsError
from jclnf.params import to_device
from jclnf.tracking import TrackState

MOTION = np.array([[0, 0], [3, -2], [6, -3], [8, -6]])
"""Whole pixels by which the planted face is moved in each frame."""


def moved(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.roll(image, (by[1], by[0]), axis=(0, 1))


@pytest.fixture(scope="module")
def case() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def params(case: Planted) -> TrackParams:
    settings = case.model.defaults
    return TrackParams(settings, settings.replace(windows=(7, 7)))


@pytest.fixture(scope="module")
def frames(case: Planted) -> np.ndarray:
    return np.stack([moved(case.image, by) for by in MOTION])


@pytest.fixture(scope="module")
def course(case, params, frames):
    """State and fits of all frames from a box."""
    return jax.device_get(jclnf.track(case.model, frames, case.box, params))


def test_a_moving_face_is_followed(case, course):
    state, fits = course
    assert fits.success.all()
    expected = case.landmarks + MOTION[:, None]
    assert np.linalg.norm(fits.landmarks - expected, axis=-1).mean(axis=1).max() < 0.5
    last = jax.tree.map(lambda array: array[-1], (fits.pose, fits.shape))
    jax.tree.map(np.testing.assert_array_equal, (state.pose, state.shape), last)
    assert state.seen
    assert state.failures == 0


def test_the_first_fit_is_that_of_an_image(case, params, course, frames):
    alone = jclnf.fit(case.model, frames[0], case.box, params.detection)
    np.testing.assert_allclose(course[1].landmarks[0], alone.landmarks, atol=1e-3)


def test_a_call_goes_on_where_the_one_before_ended(case, params, course, frames):
    """As what it gives back is the last fit's, see above: here that of the second frame."""
    given = course[1].pose, course[1].shape, np.ones(4, bool), np.zeros(4, np.int32)
    second = TrackState(*jax.tree.map(lambda array: to_device(array[1]), given))
    state, later = jclnf.track(case.model, frames[2:], second, params)
    np.testing.assert_allclose(later.landmarks, course[1].landmarks[2:], atol=1e-4)
    np.testing.assert_allclose(state.shape, course[0].shape, atol=1e-4)


def test_a_frame_is_fitted_with_the_windows_that_its_state_asks_for(case, params, frames, course):
    state = jax.tree.map(jnp.asarray, course[0])
    lost = TrackState(state.pose, state.shape, jnp.array(False), jnp.int32(3))
    for start, settings in ((state, params.tracking), (lost, params.detection)):
        after, result = jax.jit(jclnf.tracking.track_frame)(case.model, frames[-1], start, params)
        alone = jax.jit(jclnf.fitting.fit_from)(
            case.model, frames[-1], state.pose, state.shape, settings
        )
        np.testing.assert_allclose(result.landmarks, alone.landmarks, atol=1e-4)
        assert int(after.failures) == 0
        assert result.trace.performed.size == 0


def test_a_face_that_is_not_there_is_lost_and_stays_where_it_was(case, params, frames):
    blank = np.full_like(frames[:2], 128.0)
    gone = np.concatenate([frames[:2], blank])
    state, fits = jax.device_get(jclnf.track(case.model, gone, case.box, params))
    np.testing.assert_array_equal(fits.success, [True, True, False, False])
    assert state.failures == 2
    assert not state.seen
    np.testing.assert_array_equal(state.pose.translation, fits.pose.translation[1])
    np.testing.assert_array_equal(state.shape, fits.shape[1])


def test_derivatives_go_through_the_frames(case, frames):
    """By a start pose, whose derivative reaches the last frame through the one before."""
    settings = case.model.defaults.replace(windows=(0, 7), iterations=2)
    short = TrackParams(settings, settings)
    pose, shape = jax.tree.map(jnp.asarray, (case.pose, case.shape))

    def last_x(x: jax.Array) -> jax.Array:
        start = jclnf.Pose(pose.scale, pose.matrix, pose.translation.at[0].add(x))
        state = TrackState(start, shape, jnp.array(True), jnp.int32(0))
        return jclnf.track(case.model, frames[:2], state, short)[1].landmarks[-1, 0, 0]

    both = jax.jit(lambda x: jax.jvp(last_x, (x,), (jnp.ones_like(x),)))
    slope, step = both(jnp.float32(0.0))[1], 0.05
    ends = [float(both(jnp.float32(sign * step))[0]) for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * step)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(slope, difference, rtol=0.1, atol=2e-3)


def test_settings_of_openface(shared):
    model = openface_model(shared / "openface", "wild")
    params = TrackParams.openface(model)
    assert params.detection.windows == (11, 9, 7, 5)
    assert params.tracking.windows == (0, 9, 7, 0)
    assert (
        params.tracking.arithmetic
        == params.detection.arithmetic
        == FitParams.openface(model).arithmetic
    )
    assert params.detection.rotations.shape == (11, 3)


def test_networks_of_the_whole_face_keep_their_windows():
    """A face that is followed is looked at once, which is all that the bundled model does."""
    model = jclnf.load_model()
    params = TrackParams.of(model)
    assert params.detection.windows == params.tracking.windows == model.defaults.windows == (0, 31)
    assert params.detection.rotations is None  # it has a learned start
    twice = dataclasses.replace(model, defaults=model.defaults.replace(windows=(31, 31)))
    params = TrackParams.of(twice)
    assert (params.detection.windows, params.tracking.windows) == ((31, 31), (0, 31))


def test_settings_that_do_not_agree_are_refused(case):
    with pytest.raises(ParamsError, match="uncertainty"):
        TrackParams(case.model.defaults, case.model.defaults.replace(uncertainty=True))


def test_a_single_image_is_refused(case, params, frames):
    with pytest.raises(ImageError, match="frames"):
        jclnf.track(case.model, frames[0], case.box, params)
