"""How far landmarks may be off: the covariance of a fit, against NumPy and sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import default_params, planted, random_pdm, random_pose

import jclnf
from jclnf.fitting import Uncertainty
from jclnf.fitting._uncertainty import landmark_covariance, response_covariance, uncalibrated
from jclnf.geometry import displaced, jacobian, project
from jclnf.train._uncertainty import FLOORS, SPREADS, Measured, calibrated

covariance_of = jax.jit(landmark_covariance)


@pytest.fixture(scope="module")
def face():
    return planted()


@pytest.fixture(scope="module")
def fitted(face):
    params = default_params(uncertainty=True)
    return jclnf.fit(face.model, face.image, face.box + np.float32([3, -2, 0, 0]), params)


def test_the_covariance_of_a_response_is_numpys(rng):
    maps = rng.uniform(0, 1, (5, 7, 7)) ** 4
    found = np.asarray(jax.jit(response_covariance)(maps.astype(np.float32)))
    y, x = np.mgrid[:7, :7]
    for index, one in enumerate(maps):
        expected = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=one.ravel(), bias=True)
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)
    dark = np.zeros((5, 7, 7), np.float32)
    assert not np.asarray(jax.jit(response_covariance)(dark)).any()


@pytest.fixture
def case(rng):
    pdm, pose = random_pdm(), random_pose(scale=1.3)
    shape = jnp.asarray(rng.normal(size=pdm.n_modes) * np.sqrt(pdm.eigenvalues), jnp.float32)
    roots = rng.normal(size=(pdm.n_landmarks, 2, 2))
    responses = jnp.asarray(roots @ roots.transpose(0, 2, 1), jnp.float32)
    to_image = jnp.array([0.9, 0.6])
    by = Uncertainty(jnp.array(1.7), jnp.array(0.4), jnp.array(2.0), jnp.array(0.3))
    return pdm, pose, shape, responses, jnp.asarray(np.arange(pdm.n_landmarks) != 3), to_image, by


def test_covariances_are_those_of_weighted_least_squares_with_a_prior(case):
    """Faces are drawn from the prior, measured with noise and estimated: that is how far off."""
    pdm, pose, shape, responses, visible, to_image, by = case
    by = dataclasses.replace(by, inflation=jnp.array(1.0), residual=jnp.array(0.0))
    found = np.asarray(covariance_of(pdm, pose, shape, responses, visible, to_image, by))
    a, b = np.asarray(to_image)
    turn = np.array([[a, -b], [b, a]])
    noise = turn @ (2.0 * np.asarray(responses) + 0.3 * np.eye(2)) @ turn.T
    rows = np.asarray(jax.jit(jacobian)(pdm, pose, shape), float)
    seen = np.asarray(visible)
    stacked = rows[seen].reshape(-1, rows.shape[-1])
    inverse = np.zeros((len(stacked), len(stacked)))
    for i, block in enumerate(np.linalg.inv(noise[seen])):
        inverse[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    prior = np.diag(np.r_[np.zeros(6), 1 / np.asarray(pdm.eigenvalues)])
    estimator = np.linalg.solve(stacked.T @ inverse @ stacked + prior, stacked.T @ inverse)
    rng = np.random.default_rng(0)
    count, modes = 20000, pdm.n_modes
    true = np.zeros((count, 6 + modes))
    true[:, 6:] = rng.normal(size=(count, modes)) * np.sqrt(np.asarray(pdm.eigenvalues))
    roots = np.linalg.cholesky(noise[seen])
    drawn = np.einsum("nab,cnb->cna", roots, rng.normal(size=(count, seen.sum(), 2)))
    off = (true @ stacked.T + drawn.reshape(count, -1)) @ estimator.T - true
    moved = np.einsum("nai,ci->cna", rows, off)
    sampled = np.einsum("cna,cnb->nab", moved, moved) / count
    scale = np.trace(sampled, axis1=1, axis2=2)[:, None, None]
    np.testing.assert_allclose(found / scale, sampled / scale, atol=0.03)


def test_the_calibration_enters_as_it_is_documented(case):
    *given, by = case
    plain = dataclasses.replace(by, inflation=jnp.array(1.0), residual=jnp.array(0.0))
    without = np.asarray(covariance_of(*given, plain))
    full = np.asarray(covariance_of(*given, by))
    pose = case[1]
    expected = 1.7 * without + 0.4 * float(pose.scale) ** 2 * np.eye(2)
    np.testing.assert_allclose(full, expected, rtol=1e-4)


def test_a_fit_has_covariances_only_if_it_is_asked(face, fitted):
    box = face.box + np.float32([3, -2, 0, 0])
    plain = jclnf.fit(face.model, face.image, box, default_params())
    assert plain.covariance is None
    np.testing.assert_allclose(fitted.landmarks, plain.landmarks, atol=1e-4)
    assert fitted.covariance.shape == (20, 2, 2)
    assert (np.linalg.eigvalsh(np.asarray(fitted.covariance)) > 0).all()


def test_landmarks_that_are_not_seen_are_less_certain(face, fitted):
    """A hidden one follows from the shape alone."""
    visible = np.array(face.model.experts.visible)
    visible[:, :, 4] = False
    experts = dataclasses.replace(face.model.experts, visible=jnp.asarray(visible))
    model = dataclasses.replace(face.model, experts=experts)
    params = default_params(uncertainty=True)
    hidden = jclnf.fit(model, face.image, face.box + np.float32([3, -2, 0, 0]), params)
    sizes = [np.sqrt(np.linalg.det(np.asarray(f.covariance))) for f in (fitted, hidden)]
    assert sizes[1][4] > 1.1 * sizes[0][4]


def test_ellipses_turn_with_the_image(face):
    turned = np.rot90(face.image).copy()  # (x, y) goes to (y, width - 1 - x)
    x, y, w, h = face.box + np.float32([3, -2, 0, 0])
    box = np.float32([y, 240 - 1 - x - w, h, w])
    params = default_params(uncertainty=True)
    found = jclnf.fit(face.model, turned, box, params, init=[0, 0, -np.pi / 2])
    back = np.array([[0.0, -1.0], [1.0, 0.0]])
    straight = jclnf.fit(
        face.model,
        face.image,
        np.float32([x, y, w, h]),
        params,
        init=[0, 0, 0],
    )
    expected = np.asarray(straight.covariance)
    np.testing.assert_allclose(
        back @ np.asarray(found.covariance) @ back.T, expected, atol=0.05 * expected.max()
    )


def test_a_calibration_is_stored_with_the_model(face, fitted, tmp_path):
    by = Uncertainty(jnp.array(3.0), jnp.array(2.0), jnp.array(1.0), jnp.array(0.25))
    model = dataclasses.replace(face.model, uncertainty=by)
    jclnf.save_model(model, tmp_path / "model.safetensors")
    loaded = jclnf.load_model(tmp_path / "model.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.uncertainty, by))
    params = default_params(uncertainty=True)
    found = jclnf.fit(loaded, face.image, face.box + np.float32([3, -2, 0, 0]), params)
    scale = float(fitted.pose.scale) ** 2
    expected = 3 * (np.asarray(fitted.covariance) - scale * np.eye(2)) + 2 * scale * np.eye(2)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-3, atol=1e-4)
    assert float(uncalibrated().floor) == float(by.floor)


def test_a_batch_has_the_covariances_of_its_faces(face, fitted):
    params = default_params(uncertainty=True)
    boxes = np.stack([face.box + np.float32([3, -2, 0, 0]), face.box])
    batch = jclnf.fit_images(face.model, [face.image, face.image], boxes, params)
    assert batch.covariance.shape == (2, 20, 2, 2)
    np.testing.assert_allclose(
        np.asarray(batch.covariance)[0], fitted.covariance, rtol=0.02, atol=0.02
    )


def test_covariances_have_derivatives(case):
    with jax.enable_x64(True):
        pdm, pose, shape, *given = jax.tree.map(
            lambda a: jnp.asarray(a, float if a.dtype != bool else bool), case
        )

        @jax.jit
        @jax.value_and_grad
        def size(delta):
            moved, changed = displaced(pose, shape, delta)
            return jnp.sin(landmark_covariance(pdm, moved, changed, *given)).sum()

        at = np.zeros(6 + pdm.n_modes)
        slope = np.asarray(size(at)[1])
        for axis in (0, 1, 7):
            step = 1e-6 * np.eye(len(at))[axis]
            numeric = (size(step)[0] - size(-step)[0]) / 2e-6
            assert slope[axis] == pytest.approx(float(numeric), rel=1e-5)
        assert np.isfinite(jax.jit(project)(pdm, pose, shape)).all()


def test_calibration_finds_what_errors_were_drawn_with(rng):
    """Ellipses hold as many truths as they say, and turn and grow as those of the errors did."""
    pairs, b, n = len(SPREADS) * len(FLOORS), 60, 20
    roots = rng.normal(size=(b, n, 2, 2)) + [[1.5, 0], [0, 0.5]]
    true = roots @ roots.transpose(0, 1, 3, 2)
    wrong = np.broadcast_to(np.eye(2), true.shape)
    covariances = np.stack([true if pair == 7 else wrong for pair in range(pairs)])
    scales = rng.uniform(0.5, 2, b)
    drawn_with = 3 * true + 0.5 * scales[:, None, None, None] ** 2 * np.eye(2)
    errors = np.einsum("bnij,bnj->bni", np.linalg.cholesky(drawn_with), rng.normal(size=(b, n, 2)))
    arrays = (jnp.asarray(array, jnp.float32) for array in (covariances, scales, errors))
    pair, by = calibrated(Measured(*arrays))
    assert pair == 7
    assert (float(by.spread), float(by.floor)) == (2.0, np.float32(FLOORS[2]))
    assert float(by.inflation) == pytest.approx(3, rel=0.15)
    assert float(by.residual) == pytest.approx(0.5, rel=0.4)
