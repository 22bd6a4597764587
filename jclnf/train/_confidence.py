"""Teaches a model's confidence by its own fits, right and wrong ones.

The network of `jclnf.Confidence` learns on the faces that the model has learned from, in
changed images. There the model is surer of itself than on faces that it has not seen: what it
learned is therefore calibrated on other people.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy.optimize import minimize

from jclnf.fitting import FACE_LIMIT, LANDMARK_LIMIT, Confidence, Model
from jclnf.train._examples import Batch, Example
from jclnf.train._faces import Faces
from jclnf.train._fit_examples import FitExamples, Fits, fits_of, repeated
from jclnf.train._loop import Progress, TrainConfig, train

CONFIDENCE_CONFIG = TrainConfig(30, batch_size=128, learning_rate=2e-3)
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


def learn_confidence(
    model: Model,
    faces: Faces,
    held_out: Faces,
    mirror: np.ndarray,
    config: TrainConfig = CONFIDENCE_CONFIG,
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
        config: how long and how fast.
        effort: factor on the numbers of fits, `FITS` and `CALIBRATED_ON`.
        quiet: no progress bar.
    """
    count = max(FITS * effort, _LEAST_EACH * len(faces), 4 * config.batch_size)
    fits = _fits_of(model, faces, mirror, count, config.seed)
    learned = train_evidence(fits, config, quiet=quiet)
    return adapt_confidence(model, learned, held_out, mirror, effort=effort, seed=config.seed)


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


def _fits_of(model: Model, faces: Faces, mirror: np.ndarray, count: float | int, seed: int) -> Fits:
    each = math.ceil(count / len(faces))
    return fits_of(model, repeated(FitExamples(faces, mirror), each, seed=seed))


def train_evidence(
    fits: Fits, config: TrainConfig = CONFIDENCE_CONFIG, *, quiet: bool = False
) -> Confidence:
    """A confidence that tells right fits and landmarks from wrong ones, not calibrated."""
    mean, deviation = fits.given.mean(0), fits.given.std(0) + 1e-3
    standard = (fits.given - mean) / deviation
    right = np.concatenate(_right(fits), axis=1)

    inputs, outputs = standard.shape[1], right.shape[1]
    weights = np.random.default_rng(config.seed).standard_normal((inputs, HIDDEN), np.float32)
    untrained = Confidence(
        hidden=jnp.asarray(weights * np.float32(np.sqrt(2 / inputs))),
        hidden_bias=jnp.zeros(HIDDEN),
        out=jnp.zeros((HIDDEN, outputs)),
        out_bias=jnp.zeros(outputs),
        threshold=jnp.float32(THRESHOLD),
    )
    schedule = config.schedule(len(right))
    optimiser = optax.adamw(schedule, weight_decay=_DECAY, mask=_is_matrix)
    progress = Progress("confidence", quiet=quiet)
    examples = _Noisy(standard, right)
    learned = train(untrained, _objective, optimiser, examples, config, progress).learned
    # A fit's characteristics come as they are: the first layer standardises them.
    hidden = learned.hidden / deviation[:, None]
    bias = learned.hidden_bias - mean @ hidden
    return dataclasses.replace(learned, hidden=hidden, hidden_bias=bias)


def _objective(learned: Confidence, batch: Batch) -> tuple[Array, None]:
    logits = jax.vmap(learned.evidence)(batch["given"])
    losses = optax.sigmoid_binary_cross_entropy(logits, batch["right"])
    return losses[:, 0].mean() + losses[:, 1:].mean(), None


@dataclasses.dataclass(frozen=True)
class _Noisy:
    given: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.right)

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        noise = _NOISE * rng.standard_normal(self.given.shape[1], np.float32)
        return {"given": self.given[index] + noise, "right": self.right[index]}


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
    out, bias = learned.out * factor, learned.out_bias * factor + shift
    return dataclasses.replace(learned, out=out, out_bias=bias)


def _line(
    logits: Float[np.ndarray, " b"], right: Float[np.ndarray, " b"], faces: int
) -> tuple[float, float]:
    """`a` and `b` of greatest likelihood, with Gaussians of deviation 1 around 1 (of the logarithm)
    and 0 beforehand; fits of one face count together as one."""

    def loss(at: np.ndarray) -> float:
        z = np.exp(at[0]) * logits + at[1]
        return float(np.mean(np.logaddexp(0, z) - right * z) + 0.5 * (at**2).sum() / faces)

    at = minimize(loss, np.zeros(2)).x
    return float(np.exp(at[0])), float(at[1])
