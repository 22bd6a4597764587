"""Landmarks read off by a shape model of their own, and how it is learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import Planted, planted

import jclnf
from jclnf.geometry import PDM, project, shape3d
from jclnf.train._readout import regressed


@pytest.fixture(scope="module")
def case() -> Planted:
    """Its model fits at the second scale alone, of which half as much is compiled."""
    made = planted()
    defaults = made.model.defaults.replace(windows=(0, 7))
    return made._replace(model=dataclasses.replace(made.model, defaults=defaults))


def other(pdm: PDM, seed: int = 0) -> PDM:
    """A shape model that differs by some millimetres."""
    rng = np.random.default_rng(seed)
    mean = pdm.mean + rng.normal(0, 2, pdm.mean.shape)
    components = pdm.components + 0.01 * rng.normal(size=pdm.components.shape)
    arrays = (mean, components, pdm.eigenvalues)
    return PDM(*(jnp.asarray(array, jnp.float32) for array in arrays))


def test_landmarks_are_of_the_readout_and_the_fit_is_the_same(case, tmp_path):
    readout = other(case.model.pdm)
    model = dataclasses.replace(case.model, readout=readout)
    plain = jclnf.fit(case.model, case.image, case.box)
    result = jclnf.fit(model, case.image, case.box)
    for name in ("pose", "shape", "likelihood", "landmark_likelihood", "status"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
            getattr(result, name),
            getattr(plain, name),
        )
    expected = project(readout, result.pose, result.shape)
    np.testing.assert_allclose(result.landmarks, expected, atol=1e-3)
    turned = shape3d(readout, result.shape) @ result.pose.matrix.T
    np.testing.assert_allclose(result.landmarks3d, turned, atol=1e-3)
    assert np.abs(result.landmarks - plain.landmarks).max() > 0.1
    jclnf.save_model(model, tmp_path / "model.safetensors")
    loaded = jclnf.load_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.readout.components, readout.components)
    again = jclnf.fit(loaded, case.image, case.box)
    np.testing.assert_allclose(again.landmarks, result.landmarks, atol=1e-3)


def test_a_readout_of_another_shape_is_refused(case):
    pdm = case.model.pdm
    fewer = PDM(pdm.mean, pdm.components[..., :-1], pdm.eigenvalues[:-1])
    with pytest.raises(jclnf.errors.ModelFileError, match="readout"):
        dataclasses.replace(case.model, readout=fewer)


def test_the_regression_finds_what_was_put_in(rng):
    """Of many faces, all that is linear in their parameters; of a few, next to nothing."""
    pdm = jclnf.load_model().pdm
    truth = other(pdm)
    deviations = np.sqrt(np.asarray(pdm.eigenvalues))

    def learned(count: int) -> PDM:
        latent = rng.normal(size=(count, pdm.n_modes))
        by_mode = np.asarray(truth.components - pdm.components) * deviations
        apart = np.asarray(truth.mean - pdm.mean) + np.einsum("ncm,fm->fnc", by_mode, latent)
        noise = rng.normal(0, 0.3, (count, 68, 2))
        return regressed(pdm, apart[..., :2] + noise, latent)

    many, few = learned(5000), learned(10)
    asked = np.asarray(truth.mean - pdm.mean)[:, :2]
    found = np.asarray(many.mean - pdm.mean)
    assert np.abs(found[:, :2] - asked).max() < 0.2 + 0.03 * np.abs(asked).max()
    assert np.abs(found[:, 2]).max() == 0.0
    by_mode = np.asarray(many.components - pdm.components)[:, :2] * deviations
    expected = np.asarray(truth.components - pdm.components)[:, :2] * deviations
    assert np.corrcoef(by_mode.ravel(), expected.ravel())[0, 1] > 0.97
    assert np.abs(np.asarray(few.mean - pdm.mean)).max() < 0.2 * np.abs(asked).max()
