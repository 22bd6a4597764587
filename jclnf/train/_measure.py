"""How a training is watched: fits of examples, and how far off they are."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from jclnf.fitting import FitResult, Model, fit
from jclnf.train._batches import Example, Maker
from jclnf.train._end_to_end import EYE_DISTANCE


def one_of_each(make: Maker, count: int) -> Example:
    """An example of each face, always the same ones."""
    made = [make(face, np.random.default_rng([face])) for face in range(count)]
    return {key: np.stack([example[key] for example in made]) for key in made[0]}


@eqx.filter_jit
def fitted(model: Model, pictures: Any, boxes: Any) -> FitResult:
    """The fits of a batch of pictures."""
    return jax.vmap(lambda picture, box: fit(model, picture, box))(pictures, boxes)


def fit_errors(model: Model, examples: Example, chunk: int = 16) -> np.ndarray:
    """Mean landmark error `(b,)` of the fit of each example, in % of the eye distance."""
    found = []
    for first in range(0, len(examples["box"]), chunk):
        part = slice(first, first + chunk)
        landmarks = fitted(model, examples["picture"][part], examples["box"][part]).landmarks
        found.append(errors(np.asarray(landmarks), examples["points"][part]))
    return np.concatenate(found)


def errors(landmarks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean landmark error `(b,)`, as `jclnf.train._end_to_end.distance` measures it."""
    size = np.sqrt(np.ptp(truth, axis=1).prod(axis=1))
    distances = np.linalg.norm(landmarks - truth, axis=-1).mean(axis=1)
    return np.asarray(100 * distances / (EYE_DISTANCE * size))


def summary(found: np.ndarray) -> str:
    """Errors of faces in words."""
    mean, median, tail = found.mean(), np.median(found), np.percentile(found, 90)
    return (
        f"error {mean:.2f} % of the eye distance (median {median:.2f}, 90th percentile "
        f"{tail:.2f}; {len(found)} faces in changed pictures, from inexact boxes)"
    )
