"""Training of the two networks, the trunk and the learned start, on examples made on the host.

Convolutions are normalised over the batch (Ioffe and Szegedy, ICML 2015) while they are trained;
`folded` multiplies the averages of that into the weights that a fit uses.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from jclnf.convnet import Layer, Shapes, convolve, initial_weights, plain_layer, standardised
from jclnf.experts.trunk import trunk
from jclnf.pdm import PDM, project
from jclnf.start import decode, start_network
from jclnf.train.batches import Maker, batches

Weights = dict[str, Array]
Network = Callable[[Array, Layer], Array]
Loss = Callable[[Array, dict[str, Array]], Array]
"""Mean loss of a network's output for a batch."""

_TINY = 1e-3
"""Added to variances over the batch."""
_MEMORY = 0.98
"""Part of the averages of means and variances that a step keeps."""


@dataclasses.dataclass(frozen=True)
class Course:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the faces and their mirror images.
        batch: examples a step.
        rate: largest learning rate; it rises over the first steps and falls as a cosine to 0.
        decay: weight decay (AdamW).
        seed: of everything random.
    """

    epochs: int
    batch: int = 32
    rate: float = 2e-3
    decay: float = 1e-2
    seed: int = 0


class _State(eqx.Module):
    weights: Weights
    averages: dict[str, tuple[Array, Array]]
    optimiser: Any
    epoch: Array


def _normalised_layer(
    weights: Weights, seen: dict[str, tuple[Array, Array]], last: Collection[str]
) -> Layer:
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


def folded(weights: Weights, averages: dict[str, tuple[Array, Array]]) -> Weights:
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
    start_from: tuple[Weights, dict[str, tuple[Array, Array]]] | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int, float, Weights], None] | None = None,
    quiet: bool = False,
) -> tuple[Weights, dict[str, tuple[Array, Array]]]:
    """Train a network.

    Args:
        network, shapes: what to train.
        last: the names of layers that are not normalised.
        loss: of the output for a batch.
        make: makes an example (with a `picture`).
        count: number of different faces that `make` knows.
        course: how long and how fast.
        start_from: weights and averages of an earlier training.
        checkpoint: file to go on from if it is there, and to write after each epoch.
        report: called after each epoch with its number, the mean loss and the folded weights.
        quiet: no progress bar.

    Returns:
        Weights and averages, for `folded`.
    """
    steps = count // course.batch
    rate = optax.warmup_cosine_decay_schedule(
        0.0, course.rate, min(200, steps * course.epochs // 10), steps * course.epochs
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.adamw(rate, weight_decay=course.decay, mask=_is_kernel),
    )
    state = _first_state(shapes, last, optimiser, course.seed, start_from)
    if checkpoint is not None and checkpoint.exists():
        state = eqx.tree_deserialise_leaves(checkpoint, state)
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("examples",), devices=devices)

    def gradients(state: _State, batch: dict[str, Array]) -> tuple[Any, Any, Any]:
        def objective(weights: Weights) -> tuple[Array, dict[str, tuple[Array, Array]]]:
            seen: dict[str, tuple[Array, Array]] = {}
            pictures = jax.vmap(standardised_batch)(batch["picture"])
            output = network(pictures[..., None], _normalised_layer(weights, seen, last))
            return loss(output, batch), seen

        (value, seen), gradient = jax.value_and_grad(objective, has_aux=True)(state.weights)
        return lax.pmean((value, seen, gradient), "examples")

    spread = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("examples")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    @eqx.filter_jit(donate="all")
    def step(state: _State, batch: dict[str, Array]) -> tuple[_State, Array]:
        value, seen, gradient = spread(state, batch)
        updates, after = optimiser.update(gradient, state.optimiser, state.weights)
        averages = jax.tree.map(
            lambda old, new: _MEMORY * old + (1 - _MEMORY) * new, state.averages, seen
        )
        weights = optax.apply_updates(state.weights, updates)
        return _State(weights, averages, after, state.epoch), value

    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("examples"))
    state = jax.device_put(state, everywhere)
    for epoch in range(int(state.epoch), course.epochs):
        made = batches(make, count, course.batch, seed=course.seed, epoch=epoch)
        bar = tqdm(made, total=steps, desc=f"epoch {epoch + 1}/{course.epochs}", disable=quiet)
        losses = []
        for batch in bar:
            state, value = step(state, jax.device_put(batch, split))
            losses.append(value)
        mean = float(jnp.mean(jnp.stack(losses)))
        bar.close()
        state = eqx.tree_at(lambda s: s.epoch, state, state.epoch + 1)
        if checkpoint is not None:
            partial = checkpoint.with_suffix(".part")
            eqx.tree_serialise_leaves(partial, state)
            partial.replace(checkpoint)
        if report is not None:
            report(epoch, mean, jax.device_get(folded(state.weights, state.averages)))
    return jax.device_get((state.weights, state.averages))


def standardised_batch(picture: Array) -> Float[Array, "h w"]:
    """A picture of a batch, as the networks see it."""
    return standardised(picture.astype(jnp.float32))


def _is_kernel(weights: Any) -> Any:
    return {name: name.endswith(".kernel") for name in weights}


def _first_state(
    shapes: Shapes,
    last: Collection[str],
    optimiser: optax.GradientTransformation,
    seed: int,
    start_from: tuple[Weights, dict[str, tuple[Array, Array]]] | None,
) -> _State:
    if start_from is not None:
        weights, averages = start_from
    else:
        weights = initial_weights(shapes, jax.random.key(seed), last)
        widths = {name: outputs for name, (_, _, outputs) in shapes.items() if name not in last}
        weights |= {f"{name}.gain": jnp.ones(width) for name, width in widths.items()}
        averages = {name: (jnp.zeros(width), jnp.ones(width)) for name, width in widths.items()}
    return _State(weights, averages, optimiser.init(weights), jnp.zeros((), jnp.int32))


def map_loss(width: float) -> Loss:
    """Cross-entropy of the maps, as distributions over all cells, against narrow Gaussians.

    Args:
        width: standard deviation of the Gaussians in cells. Landmarks outside their map count 0.
    """

    def loss(maps: Float[Array, "b g g n"], batch: dict[str, Array]) -> Float[Array, ""]:
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

    def loss(codes: Float[Array, "b out"], batch: dict[str, Array]) -> Float[Array, ""]:
        def one(code: Array, box: Array, points: Array) -> Array:
            pose, shape = decode(pdm, box, code)
            apart = project(pdm, pose, shape) - points
            distance = jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-2).mean()
            return 100 * distance / box[2:].mean() + 0.02 * jnp.mean(code[6:] ** 2)

        return jax.vmap(one)(codes, batch["box"], batch["points"]).mean()

    return loss


@jax.jit
def start_codes(weights: Weights, pictures: Array) -> Array:
    """What the learned start says of a batch of pictures."""
    return start_network(jax.vmap(standardised_batch)(pictures)[..., None], plain_layer(weights))


@jax.jit
def trunk_maps(weights: Weights, pictures: Array) -> Array:
    """The trunk's maps of a batch of pictures."""
    return trunk(jax.vmap(standardised_batch)(pictures)[..., None], plain_layer(weights))
