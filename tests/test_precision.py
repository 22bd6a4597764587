"""Single and double precision under JAX's strictest rules for the promotion of types and ranks.

Those rules are looked at when a program is traced: most tests trace and run nothing.
"""

import contextlib
import dataclasses

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from support.synthetic import default_params, planted

import jclnf
from jclnf.fitting import Part
from jclnf.params import as_dtype
from jclnf.space import Camera, head_pose, landmarks_in_space

FACE = (181.0, 84.0, 88.0, 96.0)
"""The face of scikit-image's astronaut."""


@pytest.fixture(scope="module", autouse=True)
def _strict():
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


@pytest.fixture(scope="module")
def face(_strict):
    return planted()


@pytest.fixture(scope="module")
def bundled(_strict):
    return jclnf.load_model()


def precisions(tree) -> set[type]:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return {leaf.dtype.type for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.inexact)}


FINER = {"windows": (0, 7)}
"""One scale of two, which is traced in half the time."""
ALL = {
    "arithmetic": "openface",
    "derivatives": "rematerialised",
    "parts": True,
    "uncertainty": True,
}
"""Whatever settings add to a fit, at once."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        FINER | {"derivatives": "implicit"},
        FINER | ALL,
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_fit_and_its_gradient_are_of_the_models_precision(face, precision, changes):
    """Whatever the precision of the image, the box, the settings and the start."""
    of_part = dataclasses.replace(face.model, defaults=default_params(**FINER))
    part = Part(of_part, tuple(range(20)), tuple(range(20)))
    model = dataclasses.replace(face.model, parts=(part,)).astype(precision)
    other = np.float32 if precision == np.float64 else np.float64
    params = as_dtype(default_params(iterations=2, **changes), other)
    start = as_dtype((face.pose, face.shape), other)

    def fitted(model, image):
        return jclnf.fit(model, image, jnp.asarray(face.box, other), params, init=start)

    def loss(model, image):
        result = fitted(model, image)
        return result.landmarks.sum(), result

    gradient = eqx.filter_value_and_grad(loss, has_aux=True)
    found = eqx.filter_eval_shape(gradient, model, jnp.asarray(face.image, other))
    assert precisions(found) == {precision}
    if not changes:
        of_bytes = jnp.asarray(face.image, np.uint8)
        assert precisions(eqx.filter_eval_shape(fitted, model, of_bytes)) == {precision}


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_other_ways_to_fit_are_of_the_models_precision(face, bundled, precision):
    rotations = np.zeros((2, 3))
    finer = dataclasses.replace(face.model, defaults=default_params(**FINER))
    for model, image, box in (
        (finer, face.image, face.box),
        (bundled, astronaut(), np.array(FACE)),
    ):
        model = model.astype(precision)
        frames = np.stack([image] * 3).astype(np.uint8)

        def in_space(model, image=image, box=box):
            result = jclnf.fit(model.prepare(), jnp.asarray(image), box)
            camera = Camera.assumed(512, 512)
            pose = head_pose(result, camera)
            return result, pose, pose.towards_camera(), landmarks_in_space(result, camera)

        for function in (
            in_space,
            lambda m, image=image, box=box: jclnf.fit(m, jnp.asarray(image), box, init=rotations),
            lambda m, frames=frames, box=box: jclnf.track(m, frames, box),
        ):
            assert precisions(eqx.filter_eval_shape(function, model)) == {precision}


def test_the_bundled_model_fits_alike_in_both_precisions(bundled):
    """And is of single precision however JAX is set up."""
    assert precisions(bundled) == {np.float32}
    image = astronaut()
    single = jclnf.fit(bundled, image, FACE)
    double = jclnf.fit(bundled.astype(np.float64), image, FACE)
    assert single.ok
    np.testing.assert_allclose(single.landmarks, double.landmarks, atol=1e-3)


def test_many_images_are_fitted_as_one_is(face):
    model, params = face.model.astype(np.float64), default_params(**FINER)
    many = jclnf.fit_images(model, [face.image] * 2, [face.box] * 2, params)
    assert precisions(many) == {np.float64}
    one = jclnf.fit(model, face.image, face.box, params)
    np.testing.assert_allclose(many.landmarks[1], one.landmarks, atol=1e-8)


def test_a_tracker_goes_on_in_double_precision_after_a_restore(face):
    tracker = jclnf.Tracker(face.model.astype(np.float64))
    tracker.step(face.image, face.box)
    state = tracker.state()
    after = [tracker.step(face.image)[0].result]
    tracker.restore(state)
    after.append(tracker.step(face.image)[0].result)
    assert precisions(after) == {np.float64}
    np.testing.assert_array_equal(after[0].landmarks, after[1].landmarks)
    np.testing.assert_allclose(after[0].landmarks, face.landmarks, atol=1.5)


def astronaut() -> np.ndarray:
    return cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY)
