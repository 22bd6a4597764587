"""Where a fit starts that is told no rotation, in every way of fitting."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import planted

import jclnf
from jclnf.errors import ModelFileError
from jclnf.experts import initial_weights
from jclnf.fitting import LearnedStart, start_shapes


@pytest.fixture(scope="module")
def case():
    face = planted()
    weights = initial_weights(start_shapes(4), jax.random.key(2), last=("out",))
    # Not quite nothing: a start that can be told from the frontal one.
    weights["out.bias"] = jnp.asarray([0.02, 0.05, -0.04, 0.03, 0.01, -0.01, 0.3, -0.2, 0.1, 0.2])
    # One iteration at one scale: the start is still to be seen, and little is compiled.
    short = face.model.defaults.replace(iterations=1, windows=(9, 0))
    plain = dataclasses.replace(face.model, defaults=short)
    return face._replace(model=plain), dataclasses.replace(plain, start=LearnedStart(weights))


@eqx.filter_jit
def started(model, image, box):
    """A fit from the model's own start, spelled out."""
    image, box = jnp.asarray(image), jnp.asarray(box)
    pose, shape = model.start(model.pdm, image, box)
    return jclnf.fitting.fit_from(model, image, pose, shape, model.defaults)


def test_fits_begin_at_the_learned_start(case):
    face, model = case
    expected = started(model, face.image, face.box).landmarks
    frontal = jclnf.fit(model, face.image, face.box, init=jclnf.openface.FRONTAL).landmarks
    assert np.abs(expected - frontal).max() > 0.05
    ways = {
        "fit": jclnf.fit(model, face.image, face.box),
        "fit_images": jax.tree.map(
            lambda array: array[0], jclnf.fit_images(model, [face.image], [face.box])
        ),
    }
    for name, result in ways.items():
        np.testing.assert_allclose(result.landmarks, expected, atol=2e-3, err_msg=name)
    landmarks, _ = jclnf.CLNF(model).fit(face.image, face.box)
    np.testing.assert_allclose(landmarks, expected, atol=2e-3)


def test_without_a_learned_start_they_begin_at_the_frontal_mean_shape(case):
    face, _ = case
    frontal = jclnf.fit(face.model, face.image, face.box, init=(0.0, 0.0, 0.0))
    nothing = jclnf.fit(face.model, face.image, face.box)
    np.testing.assert_allclose(frontal.landmarks, nothing.landmarks, atol=1e-3)


def test_derivatives_go_through_the_start(case):
    face, model = case
    box = jnp.asarray(face.box)
    aim = jnp.asarray(face.landmarks)

    def loss(box):
        return jnp.mean((jclnf.fit(model, face.image, box).landmarks - aim) ** 2)

    gradient = jax.jit(jax.grad(loss))(box)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_it_is_stored_with_the_model(case, tmp_path):
    face, model = case
    jclnf.save_model(model, tmp_path / "m.safetensors")
    loaded = jclnf.load_model(tmp_path / "m.safetensors")
    assert loaded.start is not None
    for a, b in zip(jax.tree.leaves(model.start), jax.tree.leaves(loaded.start), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        jclnf.fit(loaded, face.image, face.box).landmarks,
        jclnf.fit(model, face.image, face.box).landmarks,
    )


def test_a_start_of_another_shape_model(case):
    _, model = case
    other = LearnedStart(initial_weights(start_shapes(7), jax.random.key(0)))
    with pytest.raises(ModelFileError, match="7 modes"):
        dataclasses.replace(model, start=other)
