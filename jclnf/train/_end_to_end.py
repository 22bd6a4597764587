"""Training through the unrolled fit: the loss is where the landmarks end.

Beside the trunk's weights this learns what a fit is otherwise told: regularisation and kernel width
of each scale, each landmark's weight, and how much a spread response counts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jclnf.experts import TrunkExperts
from jclnf.fitting import Model, fit_from
from jclnf.train._batches import Maker
from jclnf.train._loop import Batch, Course, run_course

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
        model: where to begin; its learned start stays as it is.
        make: makes examples with `picture`, `box` and `points`, see `BoxExamples`.
        report: called after each epoch with its number, the mean loss (% of the eye distance) and
            the model so far.
        count, course, checkpoint, quiet: as for `run_course`.
    """

    def objective(learned: Learned, batch: Batch) -> tuple[Array, None]:
        # All at once: in a loop, the gradients of convolutions take ten times as long.
        put = learned.put_into(model)
        return jax.vmap(lambda example: fit_loss(put, example))(batch).mean(), None

    rate = course.schedule(count)
    # The few numbers that are not weights of the network take larger steps.
    kinds = {"kernels": optax.adam(rate), "settings": optax.adam(lambda step: 20 * rate(step))}
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "kernels" if path[0].name == "kernels" else "settings", Learned.of(model)
    )
    optimiser = optax.chain(
        optax.zero_nans(), optax.clip_by_global_norm(1.0), optax.partition(kinds, labels)
    )

    def told(epoch: int, mean: float, learned: Learned, _: None) -> None:
        if report is not None:
            report(epoch, mean, learned.put_into(model))

    learned, _ = run_course(
        Learned.of(model),
        None,
        objective,
        optimiser,
        make,
        count,
        course,
        name="whole fit",
        checkpoint=checkpoint,
        report=told,
        quiet=quiet,
    )
    return learned.put_into(model)


def averaged(models: Sequence[Model]) -> Model:
    """The model with the mean of what several trainings from one beginning have learned.

    Its errors on other people are smaller than those of each of them, at the cost of one (Wortsman
    et al., "Model soups", ICML 2022).
    """
    learned = [Learned.of(model) for model in models]
    return jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *learned).put_into(models[0])


def fit_loss(model: Model, example: Batch) -> Float[Array, ""]:
    """The `distance` of a fit's landmarks from the truth."""
    image = example["picture"].astype(jnp.float32)
    truth = example["points"]
    assert model.start is not None
    pose, shape = lax.stop_gradient(model.start(model.pdm, image, example["box"]))
    fitted = fit_from(model, image, pose, shape, model.defaults).landmarks
    return distance(fitted, truth)


def distance(
    landmarks: Float[Array, "n 2"], truth: Float[Array, "n 2"], offset: Any = 0.0
) -> Float[Array, ""]:
    """Mean distance of landmarks from the truth, in hundredths of the eye distance (taken from the
    face's size, so that any scheme of landmarks will do).

    Args:
        landmarks, truth: pixels; a landmark whose truth is NaN does not count.
        offset: `(n, 2)` in face sizes, added to the landmarks.
    """
    known = jnp.isfinite(truth).all(-1, keepdims=True)
    low = jnp.where(known, truth, jnp.inf).min(0)
    high = jnp.where(known, truth, -jnp.inf).max(0)
    size = jnp.sqrt(jnp.prod(high - low))
    apart = jnp.where(known, landmarks + size * offset - truth, 0.0)
    distances = jnp.where(known[:, 0], jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-3), 0.0)
    return 100 * distances.sum() / known.sum() / (EYE_DISTANCE * size)
