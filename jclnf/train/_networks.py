"""Training of the two networks, the trunk and the learned start, on examples made on the host.

Convolutions are normalised over the batch (Ioffe and Szegedy, ICML 2015) while they are trained;
`folded` multiplies the averages of that into the weights that a fit uses.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jclnf.experts import Layer, Shapes, convolve, initial_weights, normalised, plain_layer
from jclnf.fitting import decode_start
from jclnf.geometry import PDM, project
from jclnf.params import to_device
from jclnf.train._examples import Batch, Examples
from jclnf.train._loop import Progress, TrainConfig, train
from jclnf.train._validation import map_chunks, one_of_each

Weights = dict[str, Array]
Averages = dict[str, tuple[Array, Array]]
"""Mean and variance over the batch of each normalised layer's output."""
Unfolded = tuple[Weights, Averages]
Network = Callable[[Array, Layer], Array]
Loss = Callable[[Array, Batch], Array]
"""Loss of a network's output for an example; a `jax.tree_util.Partial`, see `Objective`."""

DECAY = 1e-2
"""Weight decay of the kernels (AdamW)."""
TINY = 1e-3
"""Added to variances over the batch."""


def _normalised_layer(weights: Weights, seen: Averages, last: Collection[str]) -> Layer:
    """Layers that are normalised over the batch, except the last; notes means and variances."""

    def layer(name: str, x: Array, stride: int) -> Array:
        y = convolve(x, weights[f"{name}.kernel"], stride)
        if name not in last:
            mean = y.mean((0, 1, 2))
            variance = jnp.mean((y - mean) ** 2, (0, 1, 2))
            seen[name] = (mean, variance)
            y = (y - mean) * (lax.rsqrt(variance + TINY) * weights[f"{name}.gain"])
        return y + weights[f"{name}.bias"]

    return layer


@jax.jit
def folded(weights: Weights, averages: Averages) -> Weights:
    """Kernels and biases that give, without normalisation, what the averages would."""
    plain = {name: array for name, array in weights.items() if not name.endswith(".gain")}
    for name, (mean, variance) in averages.items():
        factor = weights[f"{name}.gain"] * lax.rsqrt(variance + TINY)
        plain[f"{name}.kernel"] = weights[f"{name}.kernel"] * factor
        plain[f"{name}.bias"] = weights[f"{name}.bias"] - mean * factor
    return plain


def train_network(
    network: Network,
    shapes: Shapes,
    last: Collection[str],
    loss: Loss,
    examples: Examples,
    held_out: Examples,
    config: TrainConfig,
    progress: Progress,
    *,
    start_from: Unfolded | None = None,
) -> Unfolded:
    """Train a network.

    Args:
        network, shapes: what to train.
        last: the names of layers that are not normalised.
        loss: of the output for an example.
        examples: with an `image`, to learn from.
        held_out: others, whose loss is noted after each epoch.
        start_from: results of an earlier training.
        config, progress: as for `train`.
    """

    watched = one_of_each(held_out)
    optimiser = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.adamw(config.schedule(len(examples)), weight_decay=DECAY, mask=_is_kernel),
    )
    weights, averages = start_from or _untrained(shapes, last, config.seed)
    trained = train(
        weights,
        Partial(_objective, loss, network, tuple(last)),
        optimiser,
        examples,
        config,
        progress,
        averages=averages,
        validate=lambda *found: float(
            map_chunks(partial(_losses, network), (loss, folded(*found)), watched).mean()
        ),
    )
    return trained.learned, trained.averages


def _objective(
    loss: Loss, network: Network, last: Collection[str], weights: Weights, batch: Batch
) -> tuple[Array, Averages]:
    seen: Averages = {}
    output = network(network_input(batch["image"]), _normalised_layer(weights, seen, last))
    return jax.vmap(loss)(output, batch).mean(), seen


@eqx.filter_jit
def _losses(network: Network, trained: tuple[Loss, Weights], batch: Batch) -> Array:
    loss, weights = trained
    output = network(network_input(batch["image"]), plain_layer(weights))
    return jax.vmap(loss)(output, batch)


def network_input(images: Array) -> Float[Array, "b h w 1"]:
    """A batch of images `(b, h, w)` uint8 as the networks see it."""
    return jax.vmap(normalised)(images.astype(jnp.float32))[..., None]


def _is_kernel(weights: Any) -> Any:
    return {name: name.endswith(".kernel") for name in weights}


def _untrained(shapes: Shapes, last: Collection[str], seed: int) -> Unfolded:
    weights = initial_weights(shapes, jax.random.key(seed), last)
    widths = {name: outputs for name, (_, _, outputs) in shapes.items() if name not in last}
    ones = {name: to_device(np.ones(width, np.float32)) for name, width in widths.items()}
    zeros = {name: to_device(np.zeros(width, np.float32)) for name, width in widths.items()}
    weights |= {f"{name}.gain": one for name, one in ones.items()}
    return weights, {name: (zeros[name], ones[name]) for name in widths}


def map_loss(width: float) -> Loss:
    """Cross-entropy of the maps, as distributions over all cells, against narrow Gaussians.

    Args:
        width: standard deviation of the Gaussians in cells. Landmarks outside their map count 0.
    """
    return Partial(_map_loss, width)


def _map_loss(width: Any, maps: Float[Array, "g g n"], example: Batch) -> Float[Array, ""]:
    grid = maps.shape[0]
    points = example["points"]
    cells = jnp.arange(grid, dtype=points.dtype)
    target = jnp.exp(-((cells - points[..., None]) ** 2) / (2 * width**2))
    along_x, along_y = jnp.moveaxis(target / target.sum(-1, keepdims=True), 1, 0)
    expected = jnp.einsum("yxn,nx,ny->n", maps, along_x, along_y)
    total = jax.nn.logsumexp(maps, axis=(0, 1))
    inside = ((points > 0) & (points < grid - 1)).all(-1)
    return jnp.where(inside, total - expected, 0.0).mean()


def start_loss(pdm: PDM) -> Loss:
    """Distance of the landmarks from the truth, in hundredths of the box's mean side."""
    return Partial(_start_loss, pdm)


def _start_loss(pdm: PDM, code: Float[Array, " out"], example: Batch) -> Float[Array, ""]:
    pose, shape = decode_start(pdm, example["box"], code)
    apart = project(pdm, pose, shape) - example["points"]
    distance = jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-2).mean()
    return 100 * distance / example["box"][2:].mean() + 0.02 * jnp.mean(code[6:] ** 2)
