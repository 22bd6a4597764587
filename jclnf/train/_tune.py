"""Tuning by gradient descent: any leaves of a model and its settings, on annotated faces."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from jclnf.errors import AnnotationError, TrainingError
from jclnf.experts import CCNF
from jclnf.fitting import (
    Model,
    crops_of_one_size,
    fit_from,
    initial_state,
    likelihood_of,
    map_faces,
    read_off,
)
from jclnf.geometry import pose_from_box
from jclnf.outputs import replacing, write_bytes
from jclnf.params import FitParams
from jclnf.train._end_to_end import distance
from jclnf.train._leaves import Bounds, Leaves
from jclnf.train._loop import Batch, Course, run_course

COURSE = Course(epochs=8, batch=16, rate=1e-3)
"""A course that does for a few hundred faces."""
_FASTER = 20.0
"""How much larger the steps of settings are than those of weights, see `Leaves.is_setting`."""
_CHUNK = 32
"""Most faces that are fitted together outside the training."""

Faces = tuple[Sequence[np.ndarray], Any, Any]
"""Images, boxes and landmarks, see `tune`."""


class Tuned(NamedTuple):
    """What `tune` gives back."""

    model: Model
    """The tuned model; its `defaults` are the tuned settings."""
    offset: np.ndarray
    """`(n, 2)` from where the model puts each landmark to where the data have it, in face sizes;
    zeros if it was not learned."""
    course: list[dict[str, float]]
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
    validation: float | Faces = 0.1,
    bounds: Bounds | None = None,
    rotations: Any = None,
    offset: bool = False,
    course: Course = COURSE,
    patience: int | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int, float, float], None] | None = None,
    quiet: bool = False,
) -> Tuned:
    """Tune leaves of a model and its settings, so that fits end where the landmarks are.

    Minibatches go through the whole fit (see `FitParams.derivatives`); what is learned is moved by
    Adam. JAX's devices share each batch. After each epoch the error on the validation faces is
    taken; what is given back is of the epoch where it was smallest, which may be the one before
    the tuning.

    Args:
        model: as it was loaded, not prepared.
        images: `(h, w)` grey pictures, one for each face.
        boxes: `(b, 4)`, see `jclnf.fit`.
        landmarks: `(b, n, 2)` pixels where the landmarks are; those that are NaN do not count.
        params: settings to begin with; `model.defaults` if not given.
        what: `"params"` (regularisation, kernel width and weight factor of each scale, and each
            landmark's weight; a weight factor of 0 stays so, and landmarks weigh the same then),
            `"experts"`, `"start"` (a learned start), `"pdm"`, `"all"` (but the start), or several
            of these or of names of leaves, see `jclnf.train._leaves.Leaves`.
        validation: the part of the faces that is held out, or other faces: images, boxes,
            landmarks. Hold people apart yourself: faces of one person in both tell nothing.
        bounds: least and largest value by the leaf's name, `{"params.kernel_width": (0.5, 4)}`.
        rotations: `(r, 3)` start rotations; each face starts at the one from which the model as it
            is finds the likeliest fit. If not given, those of `params`.
        offset: also learn a constant offset of each landmark, for data that mean something else by
            some landmarks than the model does. It is not part of the model: subtract it where you
            compare.
        course: how long and how fast. Settings take 20 times as large steps, in their logarithms.
        patience: end after so many epochs without a smaller validation error.
        checkpoint: file to go on from if it is there, and to write after each epoch.
        report: called after each epoch with its number, the loss and the validation error.
        quiet: no progress bar.

    Raises:
        ImageError, BoxError, AnnotationError: numbers of images, boxes and landmarks that do not
            go together, or a face that cannot be used (its index is named).
        ParamsError: see `Leaves`.
        TrainingError: see `run_course`; too few faces.
    """
    params = model.defaults if params is None else params
    rotations = params.rotations if rotations is None else rotations
    tree = {"params": params, "model": model}
    leaves = Leaves(tree, what, bounds)
    moves_start = any(name.startswith("model.start.") for name in leaves.names)
    if isinstance(validation, (int, float)):
        if not 0 < validation < 1:
            raise TrainingError(f"validation is {validation}: a part lies between 0 and 1")
        count = max(1, round(validation * len(images)))
        order = np.random.default_rng(course.seed).permutation(len(images))
        everything = _Data.of(model, images, boxes, landmarks)
        held, data = everything.part(order[:count]), everything.part(order[count:])
    else:
        data, held = _Data.of(model, images, boxes, landmarks), _Data.of(model, *validation)
    if rotations is not None:
        data, held = (_with_starts(tree, part, rotations) for part in (data, held))

    learned = {"leaves": leaves.free(), "offset": jnp.zeros_like(model.pdm.mean[:, :2])}

    def objective(learned: Any, batch: Batch) -> tuple[Array, None]:
        changed = leaves.put_into(tree, learned["leaves"])
        losses = _losses(changed, learned["offset"], batch, moves_start)
        return losses.mean(), None

    weigh = jax.jit(lambda learned, batch: objective(learned, batch)[0])

    def validated(learned: Any) -> float:
        chunks = np.array_split(np.arange(len(held)), -(-len(held) // _CHUNK))
        sums = [float(weigh(learned, held.arrays(chunk))) * len(chunk) for chunk in chunks]
        return sum(sums) / len(held)

    best = _Best(checkpoint, learned)
    if not best.course:
        best.add(0, math.nan, validated(learned), learned)

    def told(epoch: int, loss: float, learned: Any, _: None) -> bool:
        error = validated(learned)
        best.add(epoch + 1, loss, error, learned)
        if report is not None:
            report(epoch + 1, loss, error)
        return best.exhausted(patience)

    if not best.exhausted(patience):
        run_course(
            learned,
            None,
            objective,
            _optimiser(leaves, offset, course.schedule(len(data))),
            lambda face, _: {k: v[0] for k, v in data.arrays(np.array([face])).items()},
            len(data),
            course,
            name="tuning",
            checkpoint=checkpoint,
            report=told,
            quiet=quiet,
        )
    changed = leaves.put_into(tree, best.learned["leaves"])
    tuned = dataclasses.replace(changed["model"], defaults=changed["params"])
    return Tuned(tuned, np.asarray(best.learned["offset"]), best.course, best.epoch)


def _losses(tree: Any, offset: Any, batch: Any, moves_start: bool) -> Float[Array, " b"]:
    """The error of each face of a batch; derivatives pass through a learned start if it moves."""
    params: FitParams = tree["params"]
    model = tree["model"].prepare(params)

    def one(face: Batch) -> Array:
        image = face["picture"].astype(model.pdm.mean.dtype)
        if "rotation" in face:
            start = pose_from_box(model.pdm, face["box"], face["rotation"])
            shape = model.pdm.mean_shape()
        else:
            start, shape = initial_state(model, image, face["box"])
            if not moves_start:
                start, shape = lax.stop_gradient((start, shape))
        landmarks = read_off(model, fit_from(model, image, start, shape, params)).landmarks
        return distance(landmarks, face["points"], offset)

    convolutions = moves_start or not isinstance(tree["model"].experts, CCNF)
    return map_faces(one, batch, side_by_side=convolutions)


def _optimiser(
    leaves: Leaves, offset: bool, rate: Callable[[Any], Any]
) -> optax.GradientTransformation:
    def faster(step: Any) -> Any:
        return _FASTER * rate(step)

    kinds = {
        "weights": optax.adam(rate),
        "settings": optax.adam(faster),
        "fixed": optax.set_to_zero(),
    }
    labels = {
        "leaves": {
            name: "settings" if leaves.is_setting(name) else "weights" for name in leaves.names
        },
        "offset": "weights" if offset else "fixed",
    }
    return optax.chain(optax.zero_nans(), optax.partition(kinds, labels))


class _Data:
    """Faces as arrays: `picture` (b, s, s), `box` (b, 4), `points` (b, n, 2) in the pictures'
    pixels, and maybe `rotation` (b, 3)."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    @staticmethod
    def of(model: Model, images: Sequence[np.ndarray], boxes: Any, landmarks: Any) -> "_Data":
        n = model.pdm.n_landmarks
        pieces = crops_of_one_size(images, boxes)
        points = np.asarray(landmarks, np.float32)
        if points.shape != (len(images), n, 2):
            raise AnnotationError(
                f"landmarks of {len(images)} faces are ({len(images)}, {n}, 2) for this model, "
                f"not {points.shape}"
            )
        unknown = np.flatnonzero(np.isfinite(points).all(-1).sum(-1) < 2)
        if len(unknown):
            raise AnnotationError(f"face {unknown[0]}: fewer than two landmarks are known")
        moved = points - np.stack([piece.offset for piece in pieces])[:, None]
        return _Data(
            {
                "picture": np.stack([piece.image for piece in pieces]),
                "box": np.stack([piece.box for piece in pieces]),
                "points": moved,
            }
        )

    def __len__(self) -> int:
        return len(self.columns["box"])

    def arrays(self, at: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of some faces."""
        return {name: column[at] for name, column in self.columns.items()}

    def part(self, at: np.ndarray) -> "_Data":
        """Some of the faces."""
        return _Data(self.arrays(at))


def _with_starts(tree: Any, data: _Data, rotations: Any) -> _Data:
    """The faces, each with the rotation that its likeliest fit started from."""
    rotations = jnp.asarray(rotations, jnp.float32)
    model = tree["model"].prepare(tree["params"])

    @eqx.filter_jit
    def best(model: Model, params: FitParams, faces: Any) -> Array:
        def one(face: Batch) -> Array:
            def fitted(rotation: Array) -> Array:
                pose = pose_from_box(model.pdm, face["box"], rotation)
                shape = model.pdm.mean_shape()
                return likelihood_of(fit_from(model, face["picture"], pose, shape, params))

            return rotations[jnp.argmax(map_faces(fitted, rotations))]

        return map_faces(one, faces)

    chunks = np.array_split(np.arange(len(data)), -(-len(data) // _CHUNK))
    found = [np.asarray(best(model, tree["params"], data.arrays(chunk))) for chunk in chunks]
    return _Data(data.columns | {"rotation": np.concatenate(found)})


class _Best:
    """The course so far and what was learned at its best; kept beside the checkpoint."""

    def __init__(self, checkpoint: Path | None, learned: Any) -> None:
        self.course: list[dict[str, float]] = []
        self.learned, self.epoch = learned, 0
        self._file = checkpoint
        if checkpoint is None or not checkpoint.exists():
            return
        try:
            self.course = json.loads(checkpoint.with_suffix(".json").read_text())
            best = checkpoint.with_suffix(".best")
            self.learned = eqx.tree_deserialise_leaves(best, learned)
            self.epoch = int(min(self.course, key=lambda line: line["validation"])["epoch"])
        except Exception as error:  # whatever is met in damaged files
            raise TrainingError(
                f"{checkpoint}: not a checkpoint of this tuning ({error}): remove it"
            ) from None

    def add(self, epoch: int, loss: float, error: float, learned: Any) -> None:
        """Note an epoch."""
        better = all(error < line["validation"] for line in self.course)
        self.course.append({"epoch": epoch, "loss": loss, "validation": error})
        if better:
            self.learned, self.epoch = learned, epoch
        if self._file is not None:
            with replacing(self._file.with_suffix(".best")) as part:
                eqx.tree_serialise_leaves(part, self.learned)
            write_bytes(self._file.with_suffix(".json"), json.dumps(self.course).encode())

    def exhausted(self, patience: int | None) -> bool:
        """Whether there were so many epochs without a smaller error."""
        last = self.course[-1]["epoch"]
        return patience is not None and last - self.epoch >= patience
