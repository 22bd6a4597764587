"""Tuning by gradient descent: any leaves of a model and its settings, on annotated faces."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array

from jclnf.errors import AnnotationError, TrainingError
from jclnf.fitting import Model, crops_of_one_size, fit_from, likelihood_of, map_faces
from jclnf.geometry import pose_from_box
from jclnf.params import FitParams
from jclnf.train._end_to_end import fit_losses
from jclnf.train._examples import Batch, Example
from jclnf.train._loop import History, Progress, TrainConfig, best_epoch, train
from jclnf.train._parametrisation import Bounds, Parametrisation
from jclnf.train._validation import map_chunks

TUNE_CONFIG = TrainConfig(epochs=8, batch_size=16, learning_rate=1e-3)
"""Does for a few hundred faces."""

AnnotatedImages = tuple[Sequence[np.ndarray], Any, Any]
"""Images, boxes and landmarks, see `tune`."""


class TuneResult(NamedTuple):
    """Results of `tune`."""

    model: Model
    """The tuned model; its `defaults` are the tuned settings."""
    offset: np.ndarray
    """`(n, 2)` from where the model puts each landmark to where the data have it, in face sizes;
    zeros if it was not learned."""
    history: History
    """`epoch`, `loss` and `validation` (% of the eye distance) of each epoch; the first, 0, is
    before the tuning."""
    epoch: int
    """The epoch that the model is of: that of the smallest validation error."""

    @property
    def params(self) -> FitParams:
        """The tuned settings."""
        return self.model.defaults


def tune(
    model: Model,
    images: Sequence[np.ndarray],
    boxes: Any,
    landmarks: Any,
    params: FitParams | None = None,
    *,
    what: str | Sequence[str] = "params",
    validation: float | AnnotatedImages = 0.1,
    bounds: Bounds | None = None,
    rotations: Any = None,
    offset: bool = False,
    config: TrainConfig = TUNE_CONFIG,
    patience: int | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float, float], None] | None = None,
    quiet: bool = False,
) -> TuneResult:
    """Tune leaves of a model and its settings, so that fits end where the landmarks are.

    Use it to adapt a model to images of one kind: a camera, an age group, a scheme of annotation.
    Minibatches go through the whole fit (see `FitParams.derivatives`); what is learned is moved by
    Adam. JAX's devices share each batch. After each epoch the error on the validation faces is
    taken; the result is of the epoch where it was smallest, which may be the one before the tuning.

    Args:
        model: as it was loaded, not prepared.
        images: `(h, w)` grey, one for each face.
        boxes: `(b, 4)`, see `jclnf.fit`.
        landmarks: `(b, n, 2)` pixels where the landmarks are; those that are NaN do not count.
        params: settings to begin with; `model.defaults` if not given.
        what: `"params"` (regularisation, kernel width and weight factor of each scale, and each
            landmark's weight; a weight factor of 0 stays so, and landmarks weigh the same then),
            `"experts"`, `"start"` (a learned start), `"pdm"`, `"all"` (but the start), or several
            of these or of names of leaves, such as `"params.kernel_width"` or `"model.pdm.mean"`.
        validation: the part of the faces that is held out, or other faces: images, boxes,
            landmarks. Hold people apart yourself: faces of one person in both tell nothing.
        bounds: least and largest value by the leaf's name, `{"params.kernel_width": (0.5, 4)}`.
        rotations: `(r, 3)` start rotations; each face starts at the one from which the model as it
            is finds the likeliest fit. If not given, those of `params`.
        offset: also learn a constant offset of each landmark, for data that mean something else by
            some landmarks than the model does. It is not part of the model: subtract it where you
            compare.
        config: how long and how fast. Settings take 20 times as large steps, in their logarithms.
        patience: end after so many epochs without a smaller validation error.
        checkpoint: file to resume from if it is there, and to write after each epoch.
        on_epoch: called with the number of the last epoch, its loss and its validation error: when
            the tuning begins (0, and NaN as the loss) or resumes, and after each epoch.
        quiet: no progress bar.

    Raises:
        ImageError, BoxError, AnnotationError: numbers of images, boxes and landmarks that do not
            go together, or a face that cannot be used (its index is named).
        ParamsError: nothing has such a name, or a value lies outside its bounds.
        TrainingError: too few faces, a loss that is not finite, or a checkpoint that is damaged or
            of another tuning.
    """
    if params is not None:
        model = dataclasses.replace(model, defaults=params)
    parametrisation = Parametrisation(model, what, bounds)
    data = _Crops.of(model, images, boxes, landmarks)
    if isinstance(validation, (int, float)):
        if not 0 < validation < 1:
            raise TrainingError(f"validation is {validation}: a part lies between 0 and 1")
        count = max(1, round(validation * len(images)))
        order = np.random.default_rng(config.seed).permutation(len(images))
        held_out, data = data.part(order[:count]), data.part(order[count:])
    else:
        held_out = _Crops.of(model, *validation)
    rotations = model.defaults.rotations if rotations is None else rotations
    if rotations is not None:
        data, held_out = (_with_rotations(model, part, rotations) for part in (data, held_out))

    learned = parametrisation.free()
    if offset:
        learned["offset"] = jnp.zeros_like(model.pdm.mean[:, :2])

    def report(history: History) -> None:
        if on_epoch is not None:
            last = history[-1]
            on_epoch(int(last["epoch"]), last["loss"], last["validation"])

    optimiser = parametrisation.optimiser(learned, config.schedule(len(data)))
    trained = train(
        learned,
        Partial(_objective, parametrisation),
        optax.chain(optax.zero_nans(), optimiser),
        data,
        config,
        Progress("tuning", checkpoint, report, quiet),
        validate=lambda learned, _: float(
            map_chunks(_losses, (parametrisation, learned), held_out).mean()
        ),
        patience=patience,
    )
    return TuneResult(
        parametrisation.model(trained.best),
        np.asarray(trained.best.get("offset", np.zeros((model.pdm.n_landmarks, 2)))),
        trained.history,
        best_epoch(trained.history),
    )


def _objective(parametrisation: Parametrisation, learned: Any, batch: Batch) -> tuple[Array, None]:
    return _losses((parametrisation, learned), batch).mean(), None


@eqx.filter_jit
def _losses(tuned: tuple[Parametrisation, Any], batch: Batch) -> Array:
    parametrisation, learned = tuned
    moves_start = any(name.startswith("model.start.") for name in parametrisation.names)
    model, offset = parametrisation.model(learned), learned.get("offset", 0.0)
    return fit_losses(model, batch, offset, moves_start=moves_start)


@dataclasses.dataclass(frozen=True)
class _Crops:
    """Faces as arrays: `image` (b, s, s), `box` (b, 4), `points` (b, n, 2) in the images' pixels,
    and maybe `rotation` (b, 3)."""

    arrays: Example

    @staticmethod
    def of(model: Model, images: Sequence[np.ndarray], boxes: Any, landmarks: Any) -> "_Crops":
        crops = crops_of_one_size(images, boxes)
        points = np.asarray(landmarks, np.float32)
        expected = (len(images), model.pdm.n_landmarks, 2)
        if points.shape != expected:
            raise AnnotationError(
                f"landmarks of {len(images)} faces are {expected} for this model, not "
                f"{points.shape}"
            )
        unknown = np.flatnonzero(np.isfinite(points).all(-1).sum(-1) < 2)
        if len(unknown):
            raise AnnotationError(f"face {unknown[0]}: fewer than two landmarks are known")
        return _Crops(
            {
                "image": np.stack([crop.image for crop in crops]),
                "box": np.stack([crop.box for crop in crops]),
                "points": points - np.stack([crop.offset for crop in crops])[:, None],
            }
        )

    def __len__(self) -> int:
        return len(self.arrays["box"])

    def __call__(self, face: int, _: np.random.Generator) -> Example:
        return self[face]

    def __getitem__(self, face: int) -> Example:
        return {name: array[face] for name, array in self.arrays.items()}

    def __iter__(self) -> Iterator[Example]:
        return (self[face] for face in range(len(self)))

    def part(self, at: np.ndarray) -> "_Crops":
        """Some of the faces."""
        return _Crops({name: array[at] for name, array in self.arrays.items()})


def _with_rotations(model: Model, data: _Crops, rotations: Any) -> _Crops:
    """The faces, each with the rotation that its likeliest fit started from."""
    rotations = jnp.asarray(rotations, model.pdm.mean.dtype)
    found = map_chunks(_likeliest, (model.prepare(model.defaults), rotations), data)
    return _Crops(data.arrays | {"rotation": np.asarray(found)})


@eqx.filter_jit
def _likeliest(starts: tuple[Model, Array], faces: Batch) -> Array:
    """Of each face the rotation that its likeliest fit started from."""
    model, rotations = starts

    def one(face: Batch) -> Array:
        def likelihood(rotation: Array) -> Array:
            pose = pose_from_box(model.pdm, face["box"], rotation)
            shape = model.pdm.mean_shape()
            return likelihood_of(fit_from(model, face["image"], pose, shape, model.defaults))

        return rotations[jnp.argmax(map_faces(likelihood, rotations))]

    likeliest: Array = map_faces(one, faces)
    return likeliest
