"""How far a fit is to be trusted: the network, what a fit makes of it, and how it is learned."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from safetensors.numpy import load_file, save_file
from support.synthetic import default_params, planted

import jclnf
from jclnf._clnf import describe
from jclnf.fitting import AbstractConfidence, Confidence, characteristics, postprocess
from jclnf.geometry import displaced
from jclnf.params import as_dtype
from jclnf.train import Faces, TrainConfig
from jclnf.train._confidence import calibrated, train_evidence
from jclnf.train._fit_examples import (
    KINDS,
    TRIAL_SIZE,
    FitExamples,
    Fits,
    fits_of,
    no_face,
    repeated,
)

N, M = 20, 4
INPUTS = N + 6 + M


def confidence(seed: int = 0, n: int = N, m: int = M, threshold: float = 0.5) -> Confidence:
    rng = np.random.default_rng(seed)
    inputs = n + 6 + m
    sizes = ((inputs, 8), (8,), (8, 1 + n), (1 + n,))
    arrays = [jnp.asarray(rng.normal(0, 0.3, size), jnp.float32) for size in sizes]
    return Confidence(*arrays, jnp.float32(threshold))


@pytest.fixture(scope="module")
def face():
    """Its model fits at the second scale alone, of which half as much is compiled."""
    case = planted()
    defaults = case.model.defaults.replace(windows=(0, 7))
    return case._replace(model=dataclasses.replace(case.model, defaults=defaults))


@pytest.fixture(scope="module")
def model(face):
    return dataclasses.replace(face.model, confidence=confidence())


@pytest.fixture(scope="module")
def box(face):
    return face.box + np.float32([3, -2, 0, 0])


@pytest.fixture(scope="module")
def plain(face, box):
    """A fit by a model that cannot tell how good it is."""
    return jclnf.fit(face.model, face.image, box)


postprocess_compiled = eqx.filter_jit(postprocess)


def finished(face, model, plain):
    return postprocess_compiled(model, face.image, plain, model.defaults)


@pytest.fixture(scope="module")
def fitted(face, model, plain):
    return finished(face, model, plain)


def test_a_fit_has_the_probabilities_that_are_documented(model, fitted):
    """The formula of the module's docstring, in NumPy."""
    by = jax.tree.map(np.asarray, model.confidence)
    given = np.concatenate(
        [
            np.log(np.asarray(fitted.landmark_likelihood) + 1e-8),
            np.asarray(fitted.pose.matrix)[1:].ravel(),
            np.asarray(fitted.shape) / np.sqrt(np.asarray(model.pdm.eigenvalues)),
        ]
    )
    hidden = np.maximum(by.hidden.T @ given + by.hidden_bias, 0)
    expected = 1 / (1 + np.exp(-(by.out.T @ hidden + by.out_bias)))
    assert fitted.confidence == pytest.approx(expected[0], abs=1e-4)
    np.testing.assert_allclose(fitted.landmark_confidence, expected[1:], atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_a_success_is_over_the_models_threshold(face, model, plain, fitted):
    said = float(fitted.confidence)
    for threshold in (said - 0.01, said + 0.01):
        by = dataclasses.replace(model.confidence, threshold=jnp.float32(threshold))
        again = finished(face, dataclasses.replace(model, confidence=by), plain)
        assert bool(again.success) == (said > threshold)
    assert plain.confidence is None
    assert plain.landmark_confidence is None
    assert plain.success


class Half(AbstractConfidence):
    """Sure of half of every face, and of nothing else."""

    threshold: Float[Array, ""]

    def judge(self, pdm, image, result):
        return 0.5 * (image.mean() > 0) + 0 * pdm.mean.sum() * result.likelihood, None

    def misfit(self, pdm):
        return f"it is of no use to {pdm.n_modes} modes" if self.threshold < 0 else None


class Shaped(Half):
    """With a leaf that is no array, as networks have them."""

    activation: Callable[[Any], Any] = jnp.tanh

    def judge(self, pdm, image, result):
        half, _ = super().judge(pdm, image, result)
        return self.activation(2 * half), None


def test_a_model_may_hold_functions(face):
    model = dataclasses.replace(face.model, confidence=Shaped(jnp.float32(0.1)))
    params = default_params(iterations=1, windows=(0, 3))
    expected = pytest.approx(np.tanh(1.0))
    assert float(jclnf.fit(model, face.image, face.box, params).confidence) == expected
    assert (
        float(jclnf.fit_images(model, [face.image], [face.box], params).confidence[0]) == expected
    )


def test_another_kind_of_confidence(face, plain):
    for threshold in (0.4, 0.6):
        model = dataclasses.replace(face.model, confidence=Half(jnp.float32(threshold)))
        result = finished(face, model, plain)
        assert float(result.confidence) == 0.5
        assert result.landmark_confidence is None
        assert bool(result.success) == (threshold < 0.5)
    with pytest.raises(jclnf.errors.ModelFileError, match="planted: it is of no use"):
        dataclasses.replace(face.model, confidence=Half(jnp.float32(-1)))


def test_a_failed_fit_is_not_trusted_at_all(face, model, plain):
    failed = dataclasses.replace(plain, status=jnp.int32(jclnf.FitStatus.NOTHING_SEEN))
    result = finished(face, model, failed)
    assert float(result.confidence) == 0
    assert not np.asarray(result.landmark_confidence).any()
    assert not result.success


def test_batches_and_descriptions_have_it(face, model, box, fitted):
    batch = jclnf.fit_images(model, [face.image, face.image], np.stack([box, face.box]))
    assert batch.confidence.shape == batch.threshold.shape == (2,)
    assert batch.landmark_confidence.shape == (2, N)
    assert batch.confidence[0] == pytest.approx(float(fitted.confidence), abs=1e-3)
    info = describe(fitted, model.defaults)
    assert info["confidence"] == float(fitted.confidence)
    np.testing.assert_array_equal(info["landmark_confidence"], fitted.landmark_confidence)


def test_derivatives_are_those_of_finite_differences(model, fitted):
    with jax.enable_x64(True):
        exact, pose, shape, likelihood = as_dtype(
            (model, fitted.pose, fitted.shape, fitted.landmark_likelihood), float
        )

        @jax.jit
        def score(step):
            moved, changed = displaced(pose, shape, step[: 6 + M])
            face, each = exact.confidence(exact.pdm, moved, changed, likelihood * (1 + step[-N:]))
            return jnp.log(face) + jnp.sin(3 * each).sum()

        at = jnp.zeros(6 + M + N)
        slope = jax.grad(score)(at)
        for axis in (1, 2, 6, 9, 10, -1):
            step = at.at[axis].set(1e-6)
            numeric = float(score(step) - score(-step)) / 2e-6
            assert abs(numeric) > 1e-4
            assert slope[axis] == pytest.approx(numeric, rel=1e-5)


def test_it_is_stored_with_the_model(face, model, tmp_path):
    path = tmp_path / "model.safetensors"
    jclnf.save_model(model, path)
    loaded = jclnf.load_model(path)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.confidence, model.confidence))
    jclnf.save_model(face.model, path)
    assert jclnf.load_model(path).confidence is None
    # As an earlier jclnf wrote it, which knew of no such thing.
    header = json.loads(_header(path))
    assert "confidence" not in header


def _header(path):
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.metadata()["jclnf"]


def test_a_confidence_of_another_model_is_refused(face, model, tmp_path):
    with pytest.raises(
        jclnf.errors.ModelFileError, match="for 19 landmarks and 4 modes, not 20 and 4"
    ):
        dataclasses.replace(face.model, confidence=confidence(n=19))
    with pytest.raises(jclnf.errors.ModelFileError, match="for 20 landmarks and 5 modes"):
        dataclasses.replace(face.model, confidence=confidence(m=5))
    path = tmp_path / "model.safetensors"
    jclnf.save_model(model, path)
    tensors = load_file(path)
    tensors["confidence.out"] = tensors["confidence.out"][:-1].copy()
    save_file(tensors, path, metadata={"jclnf": _header(path)})
    with pytest.raises(jclnf.errors.ModelFileError, match="confidence"):
        jclnf.load_model(path)


def examples_of_fits(count: int, seed: int) -> Fits:
    """Fits whose landmarks are off by what their responses say, with noise, in units of 10 %."""
    rng = np.random.default_rng(seed)
    bad = rng.uniform(0, 2, count)
    each = bad[:, None] * rng.uniform(0.7, 1.3, (count, N))
    given = np.concatenate([-6 * each - 3, rng.normal(size=(count, 6 + M))], axis=1)
    errors = 10 * each * np.exp(rng.normal(0, 0.15, (count, N)))
    errors[bad > 1.9] = np.nan  # no face
    return Fits(given.astype(np.float32), errors.astype(np.float32))


def test_it_learns_to_tell_right_from_wrong():
    learned = train_evidence(
        examples_of_fits(4000, 0), TrainConfig(6, batch_size=64, learning_rate=3e-3), quiet=True
    )
    other = examples_of_fits(1000, 1)
    logits = np.asarray(jax.vmap(learned.evidence)(jnp.asarray(other.given)))
    assert ((logits[:, 0] > 0) == (other.error < 10)).mean() > 0.95
    assert ((logits[:, 1:] > 0) == (other.errors < 10)).mean() > 0.85
    assert (logits[np.isnan(other.error)] < 0).all()


def test_calibration_finds_the_line_that_chance_followed():
    """Right and wrong are drawn by probabilities that the logits tell only stretched and moved."""
    rng = np.random.default_rng(0)
    by = confidence()
    given = rng.normal(0, 3, (5000, INPUTS)).astype(np.float32)
    logits = np.asarray(jax.vmap(by.evidence)(jnp.asarray(given)))
    true = logits * np.r_[0.5, np.full(N, 1.5)] + np.r_[0.4, np.full(N, -0.7)]
    right = rng.uniform(size=true.shape) < 1 / (1 + np.exp(-true))
    # The mean over landmarks is what makes a face right: one landmark carries it.
    errors = np.where(right[:, 1:], 1.0, 11.0)
    fits = Fits(given, errors)
    found = calibrated(by, fits, len(given))
    said = np.asarray(jax.vmap(found.evidence)(jnp.asarray(given)))
    np.testing.assert_allclose(said[:, 1:], true[:, 1:], rtol=0.05, atol=0.05)
    trust, was = 1 / (1 + np.exp(-said[:, 0])), fits.error < 10
    assert trust.mean() == pytest.approx(was.mean(), abs=0.01)
    # What a single face says moves it little.
    one = calibrated(by, fits, 1)
    moved = [np.abs(np.asarray(new.out / by.out) - 1).max() for new in (found, one)]
    assert moved[1] < 0.7 * moved[0]


@pytest.fixture(scope="module")
def dotted():
    """Faces of few landmarks, each a bright dot."""
    rng = np.random.default_rng(3)
    images, points = [], []
    for _ in range(3):
        image = np.full((200, 220), 60, np.uint8)
        at = rng.uniform([70, 60], [150, 140], (9, 2)).round()
        for x, y in at.astype(int):
            cv2.circle(image, (x, y), 3, 250, -1)
        images.append(image)
        points.append(at)
    return Faces(images, np.array(points)), rng.permutation(9)


def test_examples_show_their_landmarks_where_they_say(dotted, monkeypatch):
    faces, mirror = dotted
    monkeypatch.setattr("jclnf.train._fit_examples.augment", lambda image, _: image)
    bright = dark = without = 0
    for example in repeated(FitExamples(faces, np.arange(9)), 40, seed=0):
        image, points = example["image"], example["points"]
        assert image.shape == (TRIAL_SIZE, TRIAL_SIZE)
        assert image.dtype == np.uint8
        x, y, w, h = example["box"]
        np.testing.assert_allclose([x + w / 2, y + h / 2], (TRIAL_SIZE - 1) / 2, atol=1e-3)
        if np.isnan(points).any():
            assert np.isnan(points).all()
            without += 1
            continue
        inside = points[((points > 2) & (points < TRIAL_SIZE - 3)).all(1)]
        at = inside.round().astype(int)
        seen = image[at[:, 1], at[:, 0]] > 140
        bright, dark = bright + seen.sum(), dark + (~seen).sum()
    assert bright > 20 * max(dark, 1)
    assert without == pytest.approx(120 * KINDS["nothing"], abs=15)
    # The other way round they have the mirrored landmarks' names.
    makes = (FitExamples(faces, names) for names in (np.arange(9), mirror))
    pairs = [list(repeated(make, 4, seed=1)) for make in makes]
    ways = {
        "same" if np.array_equal(a["points"], b["points"], equal_nan=True) else "mirrored"
        for a, b in zip(*pairs, strict=True)
        if np.array_equal(a["points"][mirror], b["points"], equal_nan=True)
        or np.array_equal(a["points"], b["points"], equal_nan=True)
    }
    assert ways == {"same", "mirrored"}


def test_examples_follow_from_the_seed(dotted):
    make = FitExamples(*dotted)
    one, two = (list(repeated(make, 2, seed=5, threads=t)) for t in (1, 3))
    for a, b in zip(one, two, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_images_of_no_face_are_none_of_the_face(dotted, rng):
    image = dotted[0].images[0]
    made = [no_face(image, rng) for _ in range(20)]
    for other in made:
        assert other.dtype == np.uint8
        shared = image[: other.shape[0], : other.shape[1]]
        assert np.corrcoef(other.ravel(), shared.ravel())[0, 1] < 0.5


def test_fits_of_examples_are_fits(monkeypatch):
    """A model that finds its face from the true box, and not from elsewhere."""
    face = planted()
    monkeypatch.setattr("jclnf.train._fit_examples.OUTER_EYES", (0, 1))
    examples = []
    for shift in (0, 70, 0):
        examples.append(
            {
                "image": face.image.astype(np.uint8),
                "box": face.box + np.float32([shift, 0, 0, 0]),
                "points": face.landmarks.astype(np.float32),
                "far": np.float32(0),
                "seed": np.uint32(0),
            }
        )
    found = fits_of(face.model, examples)
    assert found.given.shape == (3, INPUTS)
    eyes = np.linalg.norm(face.landmarks[0] - face.landmarks[1])
    assert found.error[0] < 100 * 1.0 / eyes < 100 * 20 / eyes < found.error[1]
    direct = jclnf.fit(face.model, face.image.astype(np.uint8), face.box)
    at = (direct.pose, direct.shape, direct.landmark_likelihood)
    expected = characteristics(face.model.pdm, *at)
    np.testing.assert_allclose(found.given[0], expected, atol=0.02)
    np.testing.assert_array_equal(found.given[0], found.given[2])
