"""How a training is watched: fits of examples, and how far off they are."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from jclnf.evaluation import Statistics, face_errors
from jclnf.fitting import FitResult, Model, fit, padded
from jclnf.train._end_to_end import EYE_DISTANCE
from jclnf.train._examples import Batch, Example, Examples, stacked

T = TypeVar("T")
SMALL_CHUNKS = (4, 16)
"""Sizes of chunks that hold all examples there are."""


def map_chunks(
    function: Callable[[Any, Batch], T], tree: Any, examples: Iterable[Example], size: int = 32
) -> T:
    """The results of a function for many examples, as arrays on the host with an axis for them.

    Args:
        function: from `tree` and stacked examples to arrays with a leading axis for them; jitted.
        tree: a model, say: it is put on all of JAX's devices, which take chunks in turn.
        examples: are taken as they are needed, so that they need not be in memory all at once.
        size: of a chunk. The last one is filled up, to one of a few sizes if it is the only one, so
            that little is compiled for its size.
    """
    devices = jax.local_devices()
    trees = [jax.device_put(tree, device) for device in devices]
    found: list[tuple[int, T]] = []
    source = iter(examples)
    while chunk := list(islice(source, size)):
        sizes = (size,) if found else (*SMALL_CHUNKS, size)
        filled = padded(chunk, next(n for n in sizes if n >= len(chunk)))
        at = len(found) % len(devices)
        results = function(trees[at], jax.device_put(stacked(filled), devices[at]))
        found.append((len(chunk), results))
        if len(found) > len(devices):  # the host is not to run ahead, with all images in memory
            jax.block_until_ready(found[-1 - len(devices)][1])
    parts = [jax.tree.map(lambda a, n=n: np.asarray(a)[:n], part) for n, part in found]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def one_of_each(examples: Examples) -> list[Example]:
    """An example of each face, always the same ones."""
    return [examples(face, np.random.default_rng([face])) for face in range(len(examples))]


@eqx.filter_jit
def fit_each(model: Model, examples: Batch) -> FitResult:
    """The fits of stacked examples with `image` and `box`."""
    return jax.vmap(lambda image, box: fit(model, image, box))(examples["image"], examples["box"])


def fit_errors(model: Model, examples: list[Example]) -> np.ndarray:
    """Mean landmark error `(b,)` of the fit of each example, in % of the eye distance, as
    `jclnf.train.distance` measures it."""
    landmarks = map_chunks(fit_each, model, examples).landmarks
    truth = np.stack([example["points"] for example in examples])
    return face_errors(landmarks, truth)["all_box"] / EYE_DISTANCE


def summary(errors: np.ndarray) -> str:
    """Errors of faces in words."""
    found = Statistics.of(errors)
    return (
        f"error {found.mean:.2f} % of the eye distance (median {found.median:.2f}, 90th percentile "
        f"{found.p90:.2f}; {found.faces} faces in changed images, from inexact boxes)"
    )
