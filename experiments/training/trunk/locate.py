"""Landmarks of whole images by trained networks."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.trunk.frame import Frame, Similarity, cut
from experiments.training.trunk.loss import in_pixels, positions
from experiments.training.trunk.network import Network, Weights, folded_layer, seen_as

Landmarks = Callable[[list[np.ndarray], np.ndarray], np.ndarray]
"""From images and boxes `(f, 4)` to landmarks `(f, 68, 2)` in pixels."""
CHUNK = 16


class Trained(NamedTuple):
    """A network, its folded weights, and the frame that it was trained in."""

    network: Network
    weights: Mapping[str, jax.Array]
    frame: Frame

    def save(self, path: Path) -> None:
        arrays = {name: np.asarray(array) for name, array in self.weights.items()}
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(
                file,
                network=np.array(repr(tuple(self.network))),
                side=self.frame.side,
                mean=self.frame.mean,
                **arrays,
            )
        path.with_suffix(".part").replace(path)

    @staticmethod
    def load(path: Path) -> "Trained":
        import ast

        with np.load(path) as arrays:
            weights = dict(arrays)
        network = Network(*ast.literal_eval(str(weights.pop("network"))))
        frame = Frame(int(weights.pop("side")), weights.pop("mean"))
        return Trained(network, {name: jnp.asarray(a) for name, a in weights.items()}, frame)


@partial(jax.jit, static_argnums=0)
def _found(network: Network, weights: Weights, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    output = network(seen_as(images), folded_layer(weights))
    mean, variance = positions(output, network.split)
    return in_pixels(mean, images.shape[1], network.split * output.shape[1]), variance


def in_views(
    trained: Trained, images: list[np.ndarray], views: list[Similarity]
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks `(f, n, 2)` in pixels of the images, seen in one view each, and their variances
    `(f, n)` in square cells."""
    side, points, variances = trained.frame.side, [], []
    for first in range(0, len(images), CHUNK):
        chunk = slice(first, first + CHUNK)
        crops = [cut(i, v, side) for i, v in zip(images[chunk], views[chunk], strict=True)]
        filled = np.stack(crops + crops[-1:] * (CHUNK - len(crops)))
        found, variance = _found(trained.network, dict(trained.weights), jnp.asarray(filled))
        for view, at in zip(views[chunk], np.asarray(found, np.float64), strict=False):
            points.append(view(at))
        variances.extend(np.asarray(variance)[: len(crops)])
    return np.array(points), np.array(variances)


def trunk_landmarks(trained: Trained, *, passes: int = 2) -> Landmarks:
    """From the box, then from the similarity of what was found."""

    def landmarks(images: list[np.ndarray], boxes: np.ndarray) -> np.ndarray:
        views = [trained.frame.of_box(box) for box in boxes]
        found: Any = None
        for _ in range(passes):
            found, _ = in_views(trained, images, views)
            views = [trained.frame.aligned(points) for points in found]
        return found

    return landmarks
