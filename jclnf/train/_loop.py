"""The loop of all training by gradient descent: batches, steps on all devices, checkpoints."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array
from tqdm import tqdm

from jclnf.errors import TrainingError
from jclnf.outputs import replacing
from jclnf.train._batches import Maker, batches

_MEMORY = 0.98
"""Part of the running averages that a step keeps."""

Batch = dict[str, Any]
Objective = Callable[[Any, Batch], tuple[Array, Any]]
"""From what is learned and a batch: the loss, and what running averages are to be kept of."""


@dataclasses.dataclass(frozen=True)
class Course:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the faces and their mirror images.
        batch: examples a step; the devices share them evenly.
        rate: largest learning rate; it rises over the first steps and falls as a cosine to 0.
        seed: of everything random.
    """

    epochs: int
    batch: int = 32
    rate: float = 2e-3
    seed: int = 0

    def adapted(self, effort: float, seed: int) -> "Course":
        """The course `effort` times as long, with another seed."""
        epochs = max(1, round(self.epochs * effort))
        return dataclasses.replace(self, epochs=epochs, seed=seed)

    def steps(self, count: int) -> int:
        """Steps of an epoch over `count` faces."""
        return count // self.batch

    def schedule(self, count: int) -> Callable[[Any], Any]:
        """The learning rate of each step."""
        total = max(1, self.steps(count) * self.epochs)
        return optax.warmup_cosine_decay_schedule(0.0, self.rate, min(200, total // 10), total)


class _State(eqx.Module):
    learned: Any
    averages: Any
    optimiser: Any
    epoch: Array


def run_course(
    learned: Any,
    averages: Any,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    make: Maker,
    count: int,
    course: Course,
    *,
    name: str,
    checkpoint: Path | None = None,
    report: Callable[[int, float, Any, Any], bool | None] | None = None,
    quiet: bool = False,
) -> tuple[Any, Any]:
    """Minimise an objective over epochs of examples made on the host.

    Args:
        learned: arrays to begin with.
        averages: arrays of which running averages are kept, as the objective returns them.
        objective: a mean over the batch's examples.
        optimiser: takes the gradients.
        make: makes the example of a face.
        count: number of different faces that `make` knows.
        course: how long and how fast.
        name: what is trained, for the progress bar.
        checkpoint: file to go on from if it is there, and to write after each epoch.
        report: called after each epoch with its number, the mean loss, and what was learned and
            averaged so far; it may return True to end the training.
        quiet: no progress bar.

    Returns:
        What was learned, and the averages.

    Raises:
        TrainingError: the loss is not finite any more, or the checkpoint is of another training.
    """
    steps = course.steps(count)
    if steps == 0:
        raise TrainingError(
            f"{name}: {count} faces (with their mirror images) are fewer than a batch of "
            f"{course.batch}: give more faces, or a smaller batch"
        )
    state = _State(learned, averages, optimiser.init(learned), jnp.zeros((), jnp.int32))
    if checkpoint is not None and checkpoint.exists():
        try:
            state = eqx.tree_deserialise_leaves(checkpoint, state)
        except Exception as error:  # whatever NumPy meets in a damaged file
            problem = f"{checkpoint}: not a checkpoint of this training ({error}): remove it"
            raise TrainingError(problem) from None
    devices = jax.local_devices()
    devices = devices[: max(n for n in range(1, len(devices) + 1) if course.batch % n == 0)]
    mesh = jax.make_mesh((len(devices),), ("examples",), devices=devices)

    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("examples"))
    one = SingleDeviceSharding(devices[0])

    def on_one_device(learned: Any, batch: Batch) -> Any:
        (value, seen), gradient = jax.value_and_grad(objective, has_aux=True)(learned, batch)
        return jax.tree.map(lambda array: array[None], (value, seen, gradient))

    # Each device returns its own gradients, and the first adds them up. As a collective of the
    # program itself that can stop for ever on a CPU: the devices share one pool of threads, and
    # one that waits for another holds a thread which the other may need.
    parts = jax.jit(
        jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("examples")),
            out_specs=PartitionSpec("examples"),
            check_vma=False,
        )
    )

    @jax.jit
    def move(state: _State, parts: Any) -> tuple[_State, Array]:
        value, seen, gradient = jax.tree.map(lambda array: array.mean(0), parts)
        updates, after = optimiser.update(gradient, state.optimiser, state.learned)
        kept = jax.tree.map(lambda a, b: _MEMORY * a + (1 - _MEMORY) * b, state.averages, seen)
        moved = optax.apply_updates(state.learned, updates)
        return _State(moved, kept, after, state.epoch), value

    state = jax.device_put(state, one)
    for epoch in range(int(state.epoch), course.epochs):
        made = batches(make, count, course.batch, seed=course.seed, epoch=epoch)
        bar = tqdm(
            made, total=steps, desc=f"{name}, epoch {epoch + 1}/{course.epochs}", disable=quiet
        )
        losses = []
        for batch in bar:
            learned = jax.device_put(state.learned, everywhere)
            found = parts(learned, jax.device_put(batch, split))
            state, value = move(state, jax.device_put(found, one))
            losses.append(value)
        mean = float(jnp.mean(jnp.stack(losses)))
        if not jnp.isfinite(mean):
            raise TrainingError(f"{name}: the loss is not finite in epoch {epoch + 1}")
        state = eqx.tree_at(lambda s: s.epoch, state, state.epoch + 1)
        if checkpoint is not None:
            with replacing(checkpoint) as part:
                eqx.tree_serialise_leaves(part, state)
        if report is not None and report(epoch, mean, state.learned, state.averages):
            break
    return state.learned, state.averages
