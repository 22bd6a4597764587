"""Training through the unrolled fit: the loss is where the landmarks end.

Beside the trunk's weights this learns what a fit is otherwise told: regularisation and kernel width
of each scale, each landmark's weight, and how much a spread response counts.
"""

import dataclasses
from collections.abc import Callable
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

from jclnf.experts import TrunkExperts
from jclnf.fit import fit_from
from jclnf.model import Model
from jclnf.train.batches import Maker, batches
from jclnf.train.networks import Course

EYE_DISTANCE = 0.58
"""Distance of the outer eye corners of a face towards the camera, over the size of the face."""


class Learned(eqx.Module):
    """What is learned; positive numbers as their logarithms."""

    kernels: dict[str, Array]
    confidence: Float[Array, "s v n"]
    softness: Float[Array, " s"]
    regularisation: Float[Array, " s"]
    kernel_width: Float[Array, " s"]

    @staticmethod
    def of(model: Model) -> "Learned":
        """What there is to learn of a model with trunk experts."""
        experts, params = model.experts, model.defaults
        assert isinstance(experts, TrunkExperts)
        return Learned(
            experts.kernels,
            jnp.log(experts.confidence),
            jnp.log(experts.softness),
            jnp.log(params.regularisation),
            jnp.log(params.kernel_width),
        )

    def put_into(self, model: Model) -> Model:
        """The model with what was learned."""
        assert isinstance(model.experts, TrunkExperts)
        experts = dataclasses.replace(
            model.experts,
            kernels=self.kernels,
            confidence=jnp.exp(self.confidence),
            softness=jnp.exp(self.softness),
        )
        params = dataclasses.replace(
            model.defaults,
            regularisation=jnp.exp(self.regularisation),
            kernel_width=jnp.exp(self.kernel_width),
        )
        return dataclasses.replace(model, experts=experts, defaults=params)


class _State(eqx.Module):
    learned: Learned
    optimiser: Any
    epoch: Array


def train_end_to_end(
    model: Model,
    make: Maker,
    count: int,
    course: Course,
    *,
    checkpoint: Path | None = None,
    report: Callable[[int, float, Model], None] | None = None,
    quiet: bool = False,
) -> Model:
    """Train a model with trunk experts through its fit.

    Args:
        model: where to begin; its learned start, if any, stays as it is.
        make: makes examples with `picture`, `box` and `points`, see `BoxExamples`.
        count, course, checkpoint, quiet: as for `train_network`.
        report: called after each epoch with its number, the mean loss (% of the eye distance) and
            the model so far.
    """
    steps = count // course.batch
    rate = optax.warmup_cosine_decay_schedule(
        0.0, course.rate, min(100, steps * course.epochs // 10), steps * course.epochs
    )
    # The few numbers that are not weights of the network take larger steps.
    labels = Learned("kernels", "settings", "settings", "settings", "settings")  # type: ignore[arg-type]
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"kernels": optax.adam(rate), "settings": optax.adam(lambda step: 20 * rate(step))},
            labels,
        ),
    )
    learned = Learned.of(model)
    state = _State(learned, optimiser.init(learned), jnp.zeros((), jnp.int32))
    if checkpoint is not None and checkpoint.exists():
        state = eqx.tree_deserialise_leaves(checkpoint, state)
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("examples",), devices=devices)

    def gradients(learned: Learned, batch: dict[str, Array]) -> Any:
        def objective(learned: Learned) -> Array:
            # All at once: in a loop, the gradients of convolutions take ten times as long.
            put = learned.put_into(model)
            return jax.vmap(lambda example: fit_loss(put, example))(batch).mean()

        return lax.pmean(jax.value_and_grad(objective)(learned), "examples")

    spread = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("examples")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    @eqx.filter_jit
    def step(state: _State, batch: dict[str, Array]) -> tuple[_State, Array]:
        value, gradient = spread(state.learned, batch)
        finite = jnp.isfinite(optax.tree.norm(gradient))
        gradient = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), gradient)
        updates, after = optimiser.update(gradient, state.optimiser, state.learned)
        return _State(optax.apply_updates(state.learned, updates), after, state.epoch), value

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
        bar.close()
        state = eqx.tree_at(lambda s: s.epoch, state, state.epoch + 1)
        if checkpoint is not None:
            partial = checkpoint.with_suffix(".part")
            eqx.tree_serialise_leaves(partial, state)
            partial.replace(checkpoint)
        if report is not None:
            mean = float(jnp.nanmean(jnp.stack(losses)))
            report(epoch, mean, jax.device_get(state.learned).put_into(model))
    return jax.device_get(state.learned).put_into(model)


def fit_loss(model: Model, example: dict[str, Array]) -> Float[Array, ""]:
    """Mean distance of a fit's landmarks from the truth, in hundredths of the eye distance
    (taken from the face's size, so that any scheme of landmarks will do)."""
    image = example["picture"].astype(jnp.float32)
    truth = example["points"]
    assert model.start is not None
    pose, shape = lax.stop_gradient(model.start(model.pdm, image, example["box"]))
    fitted = fit_from(model, image, pose, shape, model.defaults).landmarks
    distance = jnp.sqrt(jnp.sum((fitted - truth) ** 2, axis=-1) + 1e-3).mean()
    extent = truth.max(0) - truth.min(0)
    return 100 * distance / (EYE_DISTANCE * jnp.sqrt(extent[0] * extent[1]))
