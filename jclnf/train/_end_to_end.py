"""Training through the unrolled fit: the loss is where the landmarks end.

Beside the networks' weights this learns settings of the fit: regularisation and kernel width of
each scale, each landmark's weight, and how much a spread response counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jclnf.experts import CCNF
from jclnf.fitting import Model, fit_from, initial_state, map_faces, read_off
from jclnf.geometry import pose_from_box
from jclnf.train._examples import Batch, Examples
from jclnf.train._loop import Progress, TrainConfig, train
from jclnf.train._parametrisation import Parametrisation

EYE_DISTANCE = 0.58
"""Distance of the outer eye corners of a face towards the camera, over the size of the face."""
LEARNED = (
    "experts",
    "model.experts.confidence",
    "params.regularisation",
    "params.kernel_width",
)


def train_end_to_end(
    model: Model,
    examples: Examples,
    config: TrainConfig,
    progress: Progress,
    validate: Callable[[Model], float],
    patience: int | None = None,
) -> Model:
    """Train a model with experts that see the whole face through its fit.

    Args:
        model: where to begin; its learned start stays as it is.
        examples: with `image`, `box` and `points`, see `BoxExamples.of_fits`.
        config: how long and how fast.
        progress: where the training is kept and shown.
        validate: of the model so far, a figure for the history.
        patience: end after so many epochs without a smaller figure, and return the model that had
            the smallest one. The last one if not given.
    """
    parametrisation = Parametrisation(model, LEARNED, relative=False)

    first = parametrisation.free()
    optimiser = optax.chain(
        optax.zero_nans(),
        optax.clip_by_global_norm(1.0),
        parametrisation.optimiser(first, config.schedule(len(examples))),
    )
    found = train(
        first,
        Partial(_objective, parametrisation),
        optimiser,
        examples,
        config,
        progress,
        validate=lambda learned, _: validate(parametrisation.model(learned)),
        patience=patience,
    )
    return parametrisation.model(found.learned if patience is None else found.best)


def _objective(parametrisation: Parametrisation, learned: Any, batch: Batch) -> tuple[Array, None]:
    return fit_losses(parametrisation.model(learned), batch).mean(), None


def averaged(models: Sequence[Model]) -> Model:
    """The model with the mean of what several trainings from one beginning have learned.

    Its errors on other people are smaller than those of each of them, at the cost of one (Wortsman
    et al., "Model soups", ICML 2022).
    """
    each = [Parametrisation(model, LEARNED, relative=False) for model in models]
    learned = [parametrisation.free() for parametrisation in each]
    return each[0].model(jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *learned))


def fit_losses(
    model: Model, batch: Batch, offset: Any = 0.0, *, moves_start: bool = False
) -> Float[Array, " b"]:
    """The `distance` of each fit's landmarks from the truth.

    Args:
        model: with the settings to fit with as its defaults.
        batch: `image`, `box`, `points`, and maybe `rotation` to start from.
        offset: as for `distance`.
        moves_start: whether derivatives pass through a learned start.
    """
    params, convolutions = model.defaults, moves_start or has_convolutions(model)
    model = model.prepare(params)

    def one(face: Batch) -> Array:
        image = face["image"].astype(model.pdm.mean.dtype)
        if "rotation" in face:
            pose = pose_from_box(model.pdm, face["box"], face["rotation"])
            shape = model.pdm.mean_shape()
        else:
            pose, shape = initial_state(model, image, face["box"])
            if not moves_start:
                pose, shape = lax.stop_gradient((pose, shape))
        landmarks = read_off(model, fit_from(model, image, pose, shape, params)).landmarks
        return distance(landmarks, face["points"], offset)

    losses: Array = map_faces(one, batch, side_by_side=convolutions)
    return losses


def has_convolutions(model: Model) -> bool:
    """Whether gradients through a fit are those of convolutions, beside its learned start's."""
    return not isinstance(model.experts, CCNF)


def distance(
    landmarks: Float[Array, "n 2"], truth: Float[Array, "n 2"], offset: Any = 0.0
) -> Float[Array, ""]:
    """Mean distance of landmarks from the truth, in hundredths of the eye distance (taken from the
    face's size, so that any scheme of landmarks will do).

    Args:
        landmarks: pixels.
        truth: pixels; a landmark whose truth is NaN does not count.
        offset: `(n, 2)` in face sizes, added to the landmarks.
    """
    known = jnp.isfinite(truth).all(-1, keepdims=True)
    low = jnp.where(known, truth, jnp.inf).min(0)
    high = jnp.where(known, truth, -jnp.inf).max(0)
    size = jnp.sqrt(jnp.prod(high - low))
    apart = jnp.where(known, landmarks + size * offset - truth, 0.0)
    distances = jnp.where(known[:, 0], jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-3), 0.0)
    return 100 * distances.sum() / known.sum() / (EYE_DISTANCE * size)
