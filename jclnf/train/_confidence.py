"""Teaches a model's confidence by its own fits, right and wrong ones.

The network of `fitting/_confidence.py` learns on the faces that the model has learned from, in
changed pictures. There the model is surer of itself than on faces that it has not seen: what it
learned is therefore calibrated on other people.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jclnf.fitting import FACE_LIMIT, LANDMARK_LIMIT, Confidence, Model
from jclnf.train._batches import Example
from jclnf.train._faces import Faces
from jclnf.train._fit_examples import FitExamples, Fits, fits_of, made
from jclnf.train._loop import Batch, Course, run_course

COURSE = Course(30, batch=128, rate=2e-3)
"""How long the network learns."""
HIDDEN = 128
"""Width of its hidden layer."""
FITS = 15000
"""Fits to learn from."""
CALIBRATED_ON = 2000
"""Fits of other people to calibrate on."""
_LEAST_EACH = 5  # fits of each face to learn from
THRESHOLD = 0.5
"""A fit is taken for a success if it is more likely right than wrong."""
_NOISE = 0.1
"""Deviation of what is added to each characteristic, in its own standard deviations."""
_DECAY = 1e-2
_NEWTON = 30  # steps; a handful is enough


def learn_confidence(
    model: Model,
    faces: Faces,
    held_out: Faces,
    mirror: np.ndarray,
    course: Course = COURSE,
    *,
    effort: float = 1.0,
    quiet: bool = False,
) -> Confidence:
    """The confidence of a model: `dataclasses.replace(model, confidence=...)` has it.

    Its probabilities hold for fits of which about 40 % are right, from starts between good and
    hopeless (see `FitExamples`), with the model's own settings.

    Args:
        model: trained; of 68 landmarks, since errors are measured by the outer corners of the eyes.
        faces: what to learn from.
        held_out: faces of other people, to calibrate on.
        mirror: `(n,)` index of each landmark's mirror image.
        course: how long and how fast.
        effort: factor on the numbers of fits, `FITS` and `CALIBRATED_ON`.
        quiet: no progress bar.
    """
    count = max(FITS * effort, _LEAST_EACH * len(faces), 4 * course.batch)
    fits = _fits_of(model, faces, mirror, count, course.seed)
    learned = train_evidence(fits, course, quiet=quiet)
    return adapt_confidence(model, learned, held_out, mirror, effort=effort, seed=course.seed)


def adapt_confidence(
    model: Model,
    learned: Confidence,
    faces: Faces,
    mirror: np.ndarray,
    *,
    effort: float = 1.0,
    seed: int = 0,
) -> Confidence:
    """A confidence calibrated on a model's fits of faces; arguments as for `learn_confidence`.

    Also for one that a model had before it was trained further, on too few faces to learn it anew.
    """
    fits = _fits_of(model, faces, mirror, max(CALIBRATED_ON * effort, len(faces)), seed + 1)
    return calibrated(learned, fits, len(faces))


def _fits_of(model: Model, faces: Faces, mirror: np.ndarray, count: float, seed: int) -> Fits:
    each = math.ceil(count / len(faces))
    return fits_of(model, made(FitExamples(faces, mirror), len(faces), each, seed=seed))


def train_evidence(
    fits: Fits, course: Course = COURSE, *, checkpoint: Path | None = None, quiet: bool = False
) -> Confidence:
    """A confidence that tells right fits and landmarks from wrong ones, not calibrated."""
    mean, deviation = fits.given.mean(0), fits.given.std(0) + 1e-3
    standard = (fits.given - mean) / deviation
    right = np.concatenate(_right(fits), axis=1)

    def make(index: int, rng: np.random.Generator) -> Example:
        noise = _NOISE * rng.standard_normal(standard.shape[1], np.float32)
        return {"given": standard[index] + noise, "right": right[index]}

    def objective(learned: Confidence, batch: Batch) -> tuple[Array, None]:
        logits = jax.vmap(learned.evidence)(batch["given"])
        losses = optax.sigmoid_binary_cross_entropy(logits, batch["right"])
        return losses[:, 0].mean() + losses[:, 1:].mean(), None

    inputs, outputs = standard.shape[1], right.shape[1]
    weights = np.random.default_rng(course.seed).standard_normal((inputs, HIDDEN), np.float32)
    untrained = Confidence(
        hidden=jnp.asarray(weights * np.float32(np.sqrt(2 / inputs))),
        hidden_bias=jnp.zeros(HIDDEN),
        out=jnp.zeros((HIDDEN, outputs)),
        out_bias=jnp.zeros(outputs),
        threshold=jnp.float32(THRESHOLD),
    )
    optimiser = optax.adamw(course.schedule(len(right)), weight_decay=_DECAY, mask=_is_matrix)
    learned, _ = run_course(
        untrained,
        None,
        objective,
        optimiser,
        make,
        len(right),
        course,
        name="confidence",
        checkpoint=checkpoint,
        quiet=quiet,
    )
    # A fit's characteristics come as they are: the first layer standardises them.
    hidden = learned.hidden / deviation[:, None]
    return Confidence(
        hidden,
        learned.hidden_bias - mean @ hidden,
        learned.out,
        learned.out_bias,
        learned.threshold,
    )


def _is_matrix(learned: Any) -> Any:
    return jax.tree.map(lambda array: array.ndim == 2, learned)


def _right(fits: Fits) -> tuple[Float[np.ndarray, "b 1"], Float[np.ndarray, "b n"]]:
    """Whether each face, and each landmark, is right: 1.0 or 0.0. Nothing is without a face."""
    face, points = fits.error[:, None] < FACE_LIMIT, fits.errors < LANDMARK_LIMIT
    return face.astype(np.float32), points.astype(np.float32)


def calibrated(learned: Confidence, fits: Fits, faces: int) -> Confidence:
    """The confidence with each logit `z` turned into `a z + b` of the greatest likelihood (Platt
    scaling): one `a, b` for faces, one for all landmarks.

    Args:
        learned: what to calibrate.
        fits: of people whose faces were not learned from.
        faces: how many faces they are fits of. The fewer, the nearer `a, b` stay to 1, 0.
    """
    logits = np.asarray(jax.vmap(learned.evidence)(jnp.asarray(fits.given)))
    face, points = _right(fits)
    a, b = _line(logits[:, 0], face[:, 0], faces)
    c, d = _line(logits[:, 1:].ravel(), points.ravel(), faces)
    n = points.shape[1]
    factor = jnp.array([a, *[c] * n], jnp.float32)
    shift = jnp.array([b, *[d] * n], jnp.float32)
    return Confidence(
        learned.hidden,
        learned.hidden_bias,
        learned.out * factor,
        learned.out_bias * factor + shift,
        learned.threshold,
    )


def _line(
    logits: Float[np.ndarray, " b"], right: Float[np.ndarray, " b"], faces: int
) -> tuple[float, float]:
    """`a` and `b` of greatest likelihood, with Gaussians of deviation 1 around 1 (of the logarithm)
    and 0 beforehand; fits of one face count together as one."""
    z, y = jnp.asarray(logits), jnp.asarray(right)

    def loss(at: Array) -> Array:
        losses = optax.sigmoid_binary_cross_entropy(jnp.exp(at[0]) * z + at[1], y)
        return losses.mean() + 0.5 * (at**2).sum() / faces

    @jax.jit
    def newton(at: Array) -> Array:
        return at - jnp.linalg.solve(jax.hessian(loss)(at), jax.grad(loss)(at))

    at = jnp.zeros(2)
    for _ in range(_NEWTON):
        at = newton(at)
    return float(jnp.exp(at[0])), float(at[1])
