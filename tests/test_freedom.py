"""Landmarks that leave the shape model in the end, towards where their responses have them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import Planted, planted

import jclnf
from jclnf.errors import ParamsError
from jclnf.fitting._scales import response_maps
from jclnf.geometry import pose_from_box, project


@pytest.fixture(scope="module")
def case() -> Planted:
    """Its model fits at the second scale alone, of which half as much is compiled."""
    made = planted()
    defaults = made.model.defaults.replace(windows=(0, 7))
    return made._replace(model=dataclasses.replace(made.model, defaults=defaults))


response_maps_compiled = eqx.filter_jit(response_maps)


def plain_shift(case: Planted, result: jclnf.FitResult) -> np.ndarray:
    """The mean shifts `(n, 2)` in image pixels from where a fit ended, by the formula."""
    params, pdm = case.model.defaults, case.model.pdm
    start = pose_from_box(pdm, jnp.asarray(case.box), jnp.zeros(3)), pdm.mean_shape()
    view, scale = int(result.trace.view[-1]), jnp.array(1)
    at = (*start, scale, jnp.array(view), params.windows[1])
    maps = response_maps_compiled(case.model, jnp.asarray(case.image), params, *at)
    a, b = (float(v) for v in maps.to_reference)
    middle = (params.windows[1] - 1) / 2
    moved = np.asarray(project(case.model.pdm, result.pose, result.shape) - maps.base, float)
    turn = complex(a, b)
    d = turn * (moved[:, 0] + 1j * moved[:, 1]) + complex(middle, middle)
    responses = np.asarray(maps.responses, float)
    v, u = np.mgrid[: responses.shape[1], : responses.shape[2]]
    shifts = np.zeros((len(d), 2))
    for i, place in enumerate(d):
        squared = (u - place.real) ** 2 + (v - place.imag) ** 2
        w = responses[i] * np.exp(-squared / (2 * float(params.kernel_width[1]) ** 2))
        shift = complex((w * u).sum(), (w * v).sum()) / w.sum() - place
        back = shift / turn if maps.visible[i] else 0
        shifts[i] = [back.real, back.imag]
    return shifts


def test_landmarks_go_a_part_of_the_last_mean_shift(case: Planted) -> None:
    n = case.model.pdm.n_landmarks
    plain = jclnf.fit(case.model, case.image, case.box)
    shifts = plain_shift(case, plain)
    assert np.abs(shifts).max() > 0.05
    each = np.linspace(0, 1, n)
    for freedom, factor in ((1.0, np.ones(n)), (each, each)):
        params = case.model.defaults.replace(freedom=freedom)
        freed = jclnf.fit(case.model, case.image, case.box, params)
        np.testing.assert_allclose(freed.shape, plain.shape, atol=2e-2)
        expected = plain.landmarks + factor[:, None] * shifts
        np.testing.assert_allclose(freed.landmarks, expected, atol=5e-3)


def test_derivatives_and_files_have_it(case: Planted, tmp_path) -> None:
    """The implicit derivatives of the landmarks by the freedom are the shifts themselves."""
    params = case.model.defaults.replace(freedom=0.5, derivatives="implicit")

    def landmarks(freedom):
        asked = params.replace(freedom=freedom)
        return jclnf.fit(case.model, case.image, case.box, asked).landmarks

    _, slope = jax.jvp(landmarks, (jnp.float32(0.5),), (jnp.float32(1.0),))
    shifts = plain_shift(case, jclnf.fit(case.model, case.image, case.box))
    np.testing.assert_allclose(slope, shifts, atol=5e-3)
    model = dataclasses.replace(case.model, defaults=params)
    jclnf.save_model(model, tmp_path / "model.safetensors")
    assert float(jclnf.load_model(tmp_path / "model.safetensors").defaults.freedom) == 0.5


def test_a_freedom_that_does_not_go_with_the_model_is_refused(case: Planted) -> None:
    with pytest.raises(ParamsError, match="freedom"):
        jclnf.fit(case.model, case.image, case.box, case.model.defaults.replace(freedom=[0.1, 0.2]))
