"""Training of the two networks, the trunk and the learned start, on examples made on the host.

Convolutions are normalised over the batch (Ioffe and Szegedy, ICML 2015) while they are trained;
`folded` multiplies the averages of that into the weights that a fit uses.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jclnf.experts import (
    Layer,
    Shapes,
    convolve,
    initial_weights,
    normalised,
    plain_layer,
    trunk_network,
)
from jclnf.fitting import decode_start, start_network
from jclnf.geometry import PDM, project
from jclnf.train._batches import Maker
from jclnf.train._loop import Batch, Course, run_course

Weights = dict[str, Array]
Averages = dict[str, tuple[Array, Array]]
"""Mean and variance over the batch of each normalised layer's output."""
Trained = tuple[Weights, Averages]
Network = Callable[[Array, Layer], Array]
Loss = Callable[[Array, Batch], Array]
"""Mean loss of a network's output for a batch."""

DECAY = 1e-2
"""Weight decay of the kernels (AdamW)."""
_TINY = 1e-3
"""Added to variances over the batch."""


def _normalised_layer(weights: Weights, seen: Averages, last: Collection[str]) -> Layer:
    """Layers that are normalised over the batch, except the last; notes means and variances."""

    def layer(name: str, x: Array, stride: int) -> Array:
        y = convolve(x, weights[f"{name}.kernel"], stride)
        if name not in last:
            mean = y.mean((0, 1, 2))
            variance = jnp.mean((y - mean) ** 2, (0, 1, 2))
            seen[name] = (mean, variance)
            y = (y - mean) * (lax.rsqrt(variance + _TINY) * weights[f"{name}.gain"])
        return y + weights[f"{name}.bias"]

    return layer


def folded(weights: Weights, averages: Averages) -> Weights:
    """Kernels and biases that give, without normalisation, what the averages would."""
    plain = {name: array for name, array in weights.items() if not name.endswith(".gain")}
    for name, (mean, variance) in averages.items():
        factor = weights[f"{name}.gain"] * lax.rsqrt(variance + _TINY)
        plain[f"{name}.kernel"] = weights[f"{name}.kernel"] * factor
        plain[f"{name}.bias"] = weights[f"{name}.bias"] - mean * factor
    return plain


def train_network(
    network: Network,
    shapes: Shapes,
    last: Collection[str],
    loss: Loss,
    make: Maker,
    count: int,
    course: Course,
    *,
    name: str,
    start_from: Trained | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int, float, Weights], None] | None = None,
    quiet: bool = False,
) -> Trained:
    """Train a network.

    Args:
        network, shapes: what to train.
        last: the names of layers that are not normalised.
        loss: of the output for a batch.
        make: makes an example (with a `picture`).
        start_from: an earlier training's outcome.
        report: called after each epoch with its number, the mean loss and the folded weights.
        count, course, name, checkpoint, quiet: as for `run_course`.
    """

    def objective(weights: Weights, batch: Batch) -> tuple[Array, Averages]:
        seen: Averages = {}
        output = network(seen_as(batch["picture"]), _normalised_layer(weights, seen, last))
        return loss(output, batch), seen

    optimiser = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.adamw(course.schedule(count), weight_decay=DECAY, mask=_is_kernel),
    )
    weights, averages = start_from or _untrained(shapes, last, course.seed)

    def told(epoch: int, mean: float, weights: Weights, averages: Averages) -> None:
        if report is not None:
            report(epoch, mean, folded(weights, averages))

    return run_course(
        weights,
        averages,
        objective,
        optimiser,
        make,
        count,
        course,
        name=name,
        checkpoint=checkpoint,
        report=told,
        quiet=quiet,
    )


def seen_as(pictures: Array) -> Float[Array, "b h w 1"]:
    """A batch of pictures `(b, h, w)` uint8 as the networks see it."""
    return jax.vmap(normalised)(pictures.astype(jnp.float32))[..., None]


def _is_kernel(weights: Any) -> Any:
    return {name: name.endswith(".kernel") for name in weights}


def _untrained(shapes: Shapes, last: Collection[str], seed: int) -> Trained:
    weights = initial_weights(shapes, jax.random.key(seed), last)
    widths = {name: outputs for name, (_, _, outputs) in shapes.items() if name not in last}
    weights |= {f"{name}.gain": jnp.ones(width) for name, width in widths.items()}
    return weights, {name: (jnp.zeros(width), jnp.ones(width)) for name, width in widths.items()}


def map_loss(width: float) -> Loss:
    """Cross-entropy of the maps, as distributions over all cells, against narrow Gaussians.

    Args:
        width: standard deviation of the Gaussians in cells. Landmarks outside their map count 0.
    """

    def loss(maps: Float[Array, "b g g n"], batch: Batch) -> Float[Array, ""]:
        grid = maps.shape[1]
        points = batch["points"]
        cells = jnp.arange(grid, dtype=points.dtype)
        target = jnp.exp(-((cells - points[..., None]) ** 2) / (2 * width**2))
        along_x, along_y = jnp.moveaxis(target / target.sum(-1, keepdims=True), 2, 0)
        expected = jnp.einsum("byxn,bnx,bny->bn", maps, along_x, along_y)
        total = jax.nn.logsumexp(maps, axis=(1, 2))
        inside = ((points > 0) & (points < grid - 1)).all(-1)
        return jnp.sum(jnp.where(inside, total - expected, 0.0)) / points[..., 0].size

    return loss


def start_loss(pdm: PDM) -> Loss:
    """Distance of the landmarks from the truth, in hundredths of the box's mean side."""

    def loss(codes: Float[Array, "b out"], batch: Batch) -> Float[Array, ""]:
        def one(code: Array, box: Array, points: Array) -> Array:
            pose, shape = decode_start(pdm, box, code)
            apart = project(pdm, pose, shape) - points
            distance = jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-2).mean()
            return 100 * distance / box[2:].mean() + 0.02 * jnp.mean(code[6:] ** 2)

        return jax.vmap(one)(codes, batch["box"], batch["points"]).mean()

    return loss


@jax.jit
def start_codes(weights: Weights, pictures: Array) -> Array:
    """What the learned start says of a batch of pictures."""
    return start_network(seen_as(pictures), plain_layer(weights))


@jax.jit
def trunk_maps(weights: Weights, pictures: Array) -> Array:
    """The trunk's maps of a batch of pictures."""
    return trunk_network(seen_as(pictures), plain_layer(weights))
