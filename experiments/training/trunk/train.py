"""A training that goes on, from whenever it was stopped, to the weights that it would have had.

A batch depends on the seed and the number of its step alone. A checkpoint is the whole state after
a step; steps after the last checkpoint are repeated.
"""

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.trunk.augment import Example
from experiments.training.trunk.network import Weights, initial_weights, normalising_layer
from jclnf.experts import Layer, Shapes
from jclnf.train._networks import folded

AHEAD = 4
"""Batches made beforehand."""


class Trainable(Protocol):
    """A network, a named tuple, as `train` takes it; "maps" alone is not normalised."""

    @property
    def shapes(self) -> Shapes:
        """Those of the convolutions."""
        ...

    def look(self, images: jax.Array, layer: Layer) -> jax.Array:
        """The output for images `(b, side, side)` uint8."""
        ...

    def loss(self, output: jax.Array, points: jax.Array, side: int) -> jax.Array:
        """What is minimised, of an output for images and their points."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the faces.
        batch: examples a step.
        turn: the largest step of a kernel, as a part of its norm, after the first `warm` steps; it
            falls as a cosine to 0.
        rate: the same of Adam's learning rate, for all else.
        warm: steps that they rise over.
        clip: largest norm of a gradient.
        average: what a step keeps of the averaged weights.
        seed: of everything random.
    """

    epochs: int
    batch: int = 32
    turn: float = 0.04
    rate: float = 2e-3
    warm: int = 20
    clip: float = 5.0
    average: float = 0.999
    seed: int = 0

    def steps(self, count: int) -> int:
        """Steps of an epoch over `count` faces."""
        return count // self.batch


def optimiser(schedule: Schedule, steps: int) -> optax.GradientTransformation:
    """Muon for kernels that are normalised, Adam for the rest, over `steps` steps.

    Muon (Jordan, 2024) makes all singular values of a step the same: directions that gradients
    seldom point to are learned as well. A normalised kernel's size means nothing, so its steps are
    relative to it (You et al., 2017).
    """
    warm = min(schedule.warm, steps // 10)

    def falling(most: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, most, warm, steps)

    def as_matrices(kernels: Weights) -> dict[str, Any]:
        axes = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        return jax.tree.map(lambda _: axes, kernels)

    def kind(weights: Weights) -> dict[str, str]:
        normalised = {name for name in weights if name.endswith(".kernel")} - {"maps.kernel"}
        return {name: "kernel" if name in normalised else "other" for name in weights}

    kernels = optax.chain(
        optax.contrib.scale_by_muon(beta=0.9, weight_dimension_numbers=as_matrices),
        optax.scale_by_trust_ratio(),
        optax.scale_by_learning_rate(falling(schedule.turn)),
    )
    kinds = {"kernel": kernels, "other": optax.adam(falling(schedule.rate))}
    return optax.chain(optax.clip_by_global_norm(schedule.clip), optax.multi_transform(kinds, kind))


def initial_state(network: Trainable, schedule: Schedule, steps: int) -> dict[str, Any]:
    """The state before the first step."""
    weights = initial_weights(network.shapes, jax.random.key(schedule.seed))
    state = {
        "weights": weights,
        "averaged": weights,
        "optimiser": optimiser(schedule, steps).init(weights),
        "step": jnp.zeros((), jnp.int32),
    }
    # None weakly typed: a step would be compiled for those, and again for what it returns.
    return jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), state)


def statistics(network: Trainable, weights: Weights, images: jax.Array) -> dict[str, Any]:
    """Mean and variance of each normalised layer over a batch."""
    seen: dict[str, Any] = {}
    network.look(images, normalising_layer(weights, seen))
    return seen


def make_step(
    network: Trainable, schedule: Schedule, steps: int
) -> Callable[[Any, Any, Any], tuple[Any, jax.Array]]:
    """One step, compiled: from a state and a batch to the next state and the loss."""
    optimise = optimiser(schedule, steps)

    def objective(weights: Weights, images: jax.Array, points: jax.Array) -> jax.Array:
        output = network.look(images, normalising_layer(weights, {}))
        return network.loss(output, points, images.shape[1])

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: jax.Array, points: jax.Array) -> tuple[Any, jax.Array]:
        loss, gradient = jax.value_and_grad(objective)(state["weights"], images, points)
        updates, after = optimise.update(gradient, state["optimiser"], state["weights"])
        weights = optax.apply_updates(state["weights"], updates)
        # Averages follow closely in the beginning, when weights change a lot.
        keep = jnp.minimum(schedule.average, (1.0 + state["step"]) / (10.0 + state["step"]))
        averaged = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state["averaged"], weights)
        found = {
            "weights": weights,
            "averaged": averaged,
            "optimiser": after,
            "step": state["step"] + 1,
        }
        return found, loss

    return step


def batches(
    make: Callable[[int, np.random.Generator], Example],
    count: int,
    schedule: Schedule,
    first: int,
    last: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures and points of the steps from `first` to before `last`, made in another thread.

    Args:
        make: makes an example of a face, of its index, from random numbers.
        count: number of faces.
    """
    steps = schedule.steps(count)

    def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, at = divmod(number, steps)
        order = np.random.default_rng([schedule.seed, epoch]).permutation(count)
        chosen = order[at * schedule.batch : (at + 1) * schedule.batch]
        made = [
            make(int(index), np.random.default_rng([schedule.seed, number, place]))
            for place, index in enumerate(chosen)
        ]
        images, points = zip(*made, strict=True)
        return np.stack(images), np.stack(points).astype(np.float32)

    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(batch, n) for n in range(first, min(first + AHEAD, last))]
        for number in range(first, last):
            yield coming.pop(0).result()
            if number + AHEAD < last:
                coming.append(pool.submit(batch, number + AHEAD))


def save(path: Path, state: Any, about: dict[str, Any]) -> None:
    """Write a state and what it is of, whole or not at all."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    partial_file = path.with_suffix(".part")
    with open(partial_file, "wb") as file:
        np.savez(
            file, about=json.dumps(about), **{f"leaf{i:04d}": leaf for i, leaf in enumerate(leaves)}
        )
    partial_file.replace(path)


def restored(path: Path, state: Any, about: dict[str, Any]) -> Any:
    """The state in a file that `save` wrote, which must be of the same training."""
    with np.load(path) as arrays:
        found = json.loads(str(arrays["about"]))
        if found != json.loads(json.dumps(about)):
            raise SystemExit(f"{path}: is of another training: {found}, not {about}")
        leaves = [arrays[name] for name in sorted(arrays.files) if name != "about"]
    return jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(leaf) for leaf in leaves])


def averages_in(path: Path, weights: Weights) -> Weights:
    """The averaged weights in a file that `save` wrote, of the same network as `weights`."""
    with np.load(path) as arrays:
        leaves = [arrays[name] for name in sorted(arrays.files) if name != "about"]
    # A state's parts are in the order of their names, as are a network's weights.
    found = dict(zip(sorted(weights), map(jnp.asarray, leaves), strict=False))
    if {n: a.shape for n, a in found.items()} != {n: a.shape for n, a in weights.items()}:
        raise SystemExit(f"{path}: is of another network")
    return found


def train(
    network: Trainable,
    make: Callable[[int, np.random.Generator], Example],
    count: int,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    begin: Path | None = None,
    minutes: float = 3.0,
    report: Callable[[int, float, float, Weights], None] | None = None,
    every: int = 1,
    stop_after: int | None = None,
) -> Weights:
    """Train a network, and fold it.

    Args:
        make, count: as for `batches`.
        checkpoint: file to go on from if it is there.
        begin: checkpoint of another training, whose averaged weights are the first ones.
        minutes: between checkpoints; one is also written after each epoch and on SIGTERM.
        report: called after each `every` epochs, and the last, with their number, the mean loss,
            seconds a step, and the folded averaged weights.
        stop_after: end after this step, as a training that is cut short would.
    """
    steps = schedule.steps(count)
    total = steps * schedule.epochs
    about = {"network": network._asdict(), "schedule": dataclasses.asdict(schedule), "faces": count}
    state = initial_state(network, schedule, total)
    if begin is not None:
        known = averages_in(begin, state["weights"])
        state |= {"weights": known, "averaged": jax.tree.map(jnp.copy, known)}
    if checkpoint is not None and checkpoint.exists():
        state = restored(checkpoint, state, about)
    step = make_step(network, schedule, total)
    stopping: list[int] = []
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    losses: list[jax.Array] = []
    first, last = int(state["step"]), min(total, stop_after or total)
    written = began = time.monotonic()
    for number, (images, points) in enumerate(batches(make, count, schedule, first, last), first):
        state, loss = step(state, images, points)
        losses.append(loss)
        epoch_done = (number + 1) % steps == 0
        now = time.monotonic()
        if checkpoint is not None and (epoch_done or stopping or now - written > 60 * minutes):
            save(checkpoint, state, about)
            written = now
        if stopping:
            raise SystemExit(f"stopped after step {number + 1}")
        if epoch_done:
            mean = float(np.mean([float(loss) for loss in losses]))
            if not np.isfinite(mean):
                raise SystemExit(f"the loss is not finite in epoch {(number + 1) // steps}")
            epoch = (number + 1) // steps
            if report is not None and (epoch % every == 0 or epoch == schedule.epochs):
                pace = (time.monotonic() - began) / len(losses)
                report(epoch, mean, pace, folded_averages(network, state, make, count, schedule))
            losses, began = [], time.monotonic()
    return folded_averages(network, state, make, count, schedule)


def folded_averages(
    network: Trainable,
    state: Any,
    make: Callable[[int, np.random.Generator], Example],
    count: int,
    schedule: Schedule,
    *,
    sets: int = 16,
) -> Weights:
    """The averaged weights without normalisation: means and variances are taken anew for them,
    over some batches of examples."""
    found = []
    seen = partial(jax.jit(statistics, static_argnums=0), network)
    once = dataclasses.replace(schedule, seed=schedule.seed + 1)
    for images, _ in batches(make, count, once, 0, sets):
        found.append(seen(state["averaged"], images))
    averages: dict[str, Any] = {}
    for name in found[0]:
        means = jnp.stack([each[name][0] for each in found])
        variances = jnp.stack([each[name][1] for each in found])
        averages[name] = (means.mean(0), (variances + (means - means.mean(0)) ** 2).mean(0))
    return folded(state["averaged"], averages)
