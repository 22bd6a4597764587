"""The loop of every training by gradient descent: batches, steps on all devices, checkpoints."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array

from jclnf.errors import TrainingError
from jclnf.params import to_device
from jclnf.runtime import Meter
from jclnf.train._checkpoint import load_checkpoint, save_checkpoint
from jclnf.train._examples import Batch, Example, Examples, stacked

_MEMORY = 0.98
"""Part of the running averages that a step keeps."""

Objective = Callable[[Any, Batch], tuple[Array, Any]]
"""From what is learned and a batch: the loss, and what running averages are to be kept of.

The arrays of a `jax.tree_util.Partial` are inputs of the compiled step: trainings that differ in
nothing else share it."""
History = list[dict[str, int | float]]
"""`epoch`, mean `loss` and `validation` figure of each epoch; the first, 0, is before training."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the examples.
        batch_size: examples a step; the devices share them evenly.
        learning_rate: the largest; it rises over the first steps and falls as a cosine to 0.
        seed: of everything random.
    """

    epochs: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0

    def scaled(self, effort: float, seed: int) -> "TrainConfig":
        """The same with `effort` times as many epochs, and another seed."""
        epochs = max(1, round(self.epochs * effort))
        return dataclasses.replace(self, epochs=epochs, seed=seed)

    def schedule(self, count: int) -> Callable[[Any], Any]:
        """The learning rate of each step, with `count` examples an epoch."""
        total = max(1, count // self.batch_size * self.epochs)
        warmup = min(200, total // 10)
        return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, total)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training is kept and shown.

    Attributes:
        name: what is trained, for the progress bar and in errors.
        checkpoint: file to resume from if it is there, and to write after each epoch.
        on_epoch: called with the history when the loop begins or resumes, and after each epoch.
        quiet: no progress bar.
    """

    name: str
    checkpoint: Path | None = None
    on_epoch: Callable[[History], None] | None = None
    quiet: bool = False


class Trained(NamedTuple):
    """Results of `train`."""

    learned: Any
    averages: Any
    best: Any
    """The parameters at the epoch of the smallest validation figure, see `best_epoch`."""
    history: History


class _State(eqx.Module):
    learned: Any
    averages: Any
    optimiser: Any
    best: Any


def train(
    learned: Any,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    examples: Examples,
    config: TrainConfig,
    progress: Progress,
    *,
    averages: Any = None,
    validate: Callable[[Any, Any], float] | None = None,
    patience: int | None = None,
) -> Trained:
    """Minimise an objective over epochs of examples made on the host.

    The checkpoint is written when an epoch's steps are done and again when it is validated. So an
    interruption repeats the steps of one epoch at most, and the history has every epoch.

    Args:
        learned: arrays to begin with.
        objective: a mean over the batch's examples.
        optimiser: takes the gradients.
        examples: to learn from.
        config: how long and how fast.
        progress: where the training is kept and shown.
        averages: arrays of which running averages are kept, as the objective returns them.
        validate: of what is learned and averaged, a figure that is better the smaller it is.
        patience: end after so many epochs without a smaller figure.

    Raises:
        TrainingError: the loss is not finite any more, the checkpoint cannot be used, or there are
            fewer examples than a batch has.
    """
    if len(examples) < config.batch_size:
        raise TrainingError(
            f"{progress.name}: {len(examples)} faces (with their mirror images) are fewer than a "
            f"batch of {config.batch_size}: give more faces, or a smaller batch"
        )
    state = _State(learned, averages, optimiser.init(learned), learned)
    history: History = [{"epoch": 0, "loss": math.nan}]
    if progress.checkpoint is not None and progress.checkpoint.exists():
        state, history = load_checkpoint(progress.checkpoint, state)

    def save() -> None:
        if progress.checkpoint is not None:
            save_checkpoint(progress.checkpoint, state, history)

    step = _Step(objective, optimiser, config.batch_size, jax.local_devices())
    state = jax.device_put(state, step.first)
    while True:
        last = history[-1]
        if "validation" not in last:
            figure = math.nan if validate is None else validate(state.learned, state.averages)
            last["validation"] = figure
            if best_epoch(history) == last["epoch"]:
                state = dataclasses.replace(state, best=state.learned)
            save()
        if progress.on_epoch is not None:
            progress.on_epoch(history)
        epoch = int(last["epoch"])
        if epoch >= config.epochs or (
            patience is not None and epoch - best_epoch(history) >= patience
        ):
            # Tied to no device, as what is loaded: fits with it need no programs of their own.
            free = jax.tree.map(to_device, jax.device_get(state))
            return Trained(free.learned, free.averages, free.best, history)
        losses = []
        meter = Meter(
            f"{progress.name}, epoch {epoch + 1} of {config.epochs}",
            len(examples) // config.batch_size,
            unit="batches",
            quiet=progress.quiet,
        )
        epoch_batches = batches(examples, config.batch_size, seed=config.seed, epoch=epoch)
        for batch in meter.over(epoch_batches):
            state, loss = step(state, batch)
            losses.append(loss)
        mean = float(jnp.mean(jnp.stack(losses)))
        if not math.isfinite(mean):
            raise TrainingError(f"{progress.name}: the loss is not finite in epoch {epoch + 1}")
        history.append({"epoch": epoch + 1, "loss": mean})
        save()


def best_epoch(history: History) -> int:
    """The first epoch with the smallest validation figure."""

    def figure(line: dict[str, int | float]) -> tuple[bool, float]:
        return math.isnan(line["validation"]), line["validation"]

    return int(min(history, key=figure)["epoch"])


class _Step:
    """A step of the optimiser on a batch that the devices share."""

    def __init__(
        self,
        objective: Objective,
        optimiser: optax.GradientTransformation,
        batch_size: int,
        devices: list[Any],
    ) -> None:
        count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
        self._mesh = jax.make_mesh((count,), ("examples",), devices=devices[:count])
        self._everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._split = NamedSharding(self._mesh, PartitionSpec("examples"))
        self.first = SingleDeviceSharding(devices[0])
        arrays, static = eqx.partition(objective, eqx.is_array)
        self._objective = eqx.combine(jax.device_put(arrays, self._everywhere), static)

        def move(state: _State, gradients: Any) -> tuple[_State, Array]:
            value, seen, gradient = jax.tree.map(lambda array: array.mean(0), gradients)
            updates, after = optimiser.update(gradient, state.optimiser, state.learned)
            averages = jax.tree.map(
                lambda a, b: _MEMORY * a + (1 - _MEMORY) * b, state.averages, seen
            )
            moved = optax.apply_updates(state.learned, updates)
            return _State(moved, averages, after, state.best), value

        self._move = jax.jit(move)

    def __call__(self, state: _State, batch: Example) -> tuple[_State, Array]:
        learned = jax.device_put(state.learned, self._everywhere)
        batch = jax.device_put(batch, self._split)
        gradients = _gradients(self._objective, learned, batch, self._mesh)
        moved: tuple[_State, Array] = self._move(state, jax.device_put(gradients, self.first))
        return moved


@eqx.filter_jit
def _gradients(objective: Objective, learned: Any, batch: Batch, mesh: Any) -> Any:
    """Loss, what averages are kept of, and gradients of each device's share of a batch.

    The first device adds them up. As a collective of the program itself that can stop for ever on a
    CPU: the devices share one pool of threads, and one that waits for another holds a thread which
    the other may need.
    """
    arrays, static = eqx.partition((objective, learned), eqx.is_array)

    def on_one_device(arrays: Any, batch: Batch) -> Any:
        objective, learned = eqx.combine(arrays, static)
        (value, seen), gradient = jax.value_and_grad(objective, has_aux=True)(learned, batch)
        return jax.tree.map(lambda array: array[None], (value, seen, gradient))

    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("examples")),
        out_specs=PartitionSpec("examples"),
        check_vma=False,
    )(arrays, batch)


def batches(
    examples: Examples, size: int, *, seed: int, epoch: int, threads: int = 2, ahead: int = 4
) -> Iterator[Example]:
    """One epoch in random order, in batches of `size` (the rest is left out), made on the host
    while the device works on earlier ones.

    Every example follows from the seed, the epoch and its place in it alone: a training that is
    resumed goes on as if it had not been interrupted, whatever the number of threads.
    """
    count = len(examples)
    order = np.random.default_rng([seed, epoch]).permutation(count)

    def batch(start: int) -> Example:
        faces = enumerate(order[start : start + size], start)
        return stacked(
            [examples(int(face), np.random.default_rng([seed, epoch, i])) for i, face in faces]
        )

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Any] = deque()
        for start in range(0, count - size + 1, size):
            waiting.append(pool.submit(batch, start))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
