"""From annotated faces to a model: shape model, learned start, trunks, and the whole fit.

Every stage leaves a checkpoint in the working folder after each epoch, and one that is finished is
not done again: a training that was interrupted goes on where it stood.
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jclnf.errors import TrainingError
from jclnf.experts import TrunkExperts, trunk_network, trunk_shapes
from jclnf.files import save_model
from jclnf.fitting import LearnedStart, Model, decode_start, start_network, start_shapes
from jclnf.geometry import PDM, project
from jclnf.outputs import replacing, write_bytes
from jclnf.params import FitParams
from jclnf.train._batches import COARSE, FINE, BoxExamples, Disturbance, Example, TrunkExamples
from jclnf.train._end_to_end import averaged, train_end_to_end
from jclnf.train._faces import Faces, Posed
from jclnf.train._loop import Course
from jclnf.train._measure import errors, fit_errors, one_of_each, summary
from jclnf.train._networks import (
    Trained,
    Weights,
    folded,
    map_loss,
    start_codes,
    start_loss,
    train_network,
    trunk_maps,
)
from jclnf.train._readout import learn_readout
from jclnf.train._shape_model import ShapeModel, learn_shape_model

FIT_PICTURE = 160
"""Side in pixels of the pictures that whole fits are trained on."""
FIT_MARGIN = (1.8, 3.2)
"""Their side in mean sides of the box: faces are 50 to 90 px large, as in video."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained, and for how long.

    Attributes:
        modes: modes of the shape model.
        channels: of the trunk at each of its resolutions, see `trunk_shapes`.
        grid: side of the maps in cells.
        scalings: cells per millimetre at each scale.
        middle: centre of the maps from the landmarks' centroid, millimetres.
        windows: sides of the windows in cells.
        iterations: of each pass at each scale.
        map_width: standard deviation in cells of the maps that are to be learned.
        start: course of the learned start.
        coarse: course of the first scale's trunk, from nothing.
        fine: course of each later scale's trunk, from the one before. One scale is enough: a second
            doubles the time of a fit for a hundredth of the error.
        fit: course of the whole fit.
        fits: how many times the whole fit is trained, with as many seeds; the weights are averaged.
    """

    modes: int = 34
    channels: tuple[int, int, int, int, int] = (24, 48, 96, 128, 64)
    grid: int = 48
    scalings: tuple[float, ...] = (0.22,)
    middle: tuple[float, float] = (0.0, 6.0)
    windows: tuple[int, ...] = (15,)
    iterations: int = 2
    map_width: float = 1.0
    start: Course = Course(80, batch=64)
    coarse: Course = Course(36)
    fine: Course = Course(7, rate=1e-3)
    fit: Course = Course(12, rate=2e-4)
    fits: int = 3

    def adapted(self, effort: float, seed: int) -> "Plan":
        """The plan with all courses `effort` times as long, and another seed."""
        names = ("start", "coarse", "fine", "fit")
        changes = {name: getattr(self, name).adapted(effort, seed) for name in names}
        return dataclasses.replace(self, **changes)


class Workshop:
    """The working folder of a training: its checkpoints, and the course of its losses.

    Args:
        folder: where; made if it is not there.
        plan, faces: what is trained on what. A folder of another training is refused.
    """

    def __init__(self, folder: Path, plan: Any, faces: Faces) -> None:
        self.folder = folder
        description = json.dumps(
            {
                "plan": dataclasses.asdict(plan),
                "faces": len(faces),
                "points": hashlib.sha256(np.round(faces.points, 3).tobytes()).hexdigest(),
            },
            indent=1,
        )
        file = folder / "training.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if file.exists() and file.read_text() != description:
                raise TrainingError(
                    f"{folder}: holds another training (other faces, or another plan): remove "
                    "the folder, or name another"
                )
            write_bytes(file, description.encode())
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written ({error.strerror})") from None

    def checkpoint(self, stage: str) -> Path:
        """The file of a stage's checkpoint."""
        return self.folder / f"{stage}.eqx"

    def note(self, stage: str, epoch: int, loss: float, held_out: float) -> None:
        """Add a line to the course of the training."""
        file = self.folder / "course.csv"
        new = not file.exists()
        with file.open("a", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(["stage", "epoch", "loss", "held_out"])
            writer.writerow([stage, epoch + 1, f"{loss:.4f}", f"{held_out:.4f}"])


def train_model(
    faces: Faces,
    held_out: Faces,
    examples: np.ndarray,
    mirror: np.ndarray,
    folder: Path,
    plan: Plan | None = None,
    *,
    name: str = "",
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Model:
    """Train a model from nothing.

    Args:
        faces: what to learn from.
        held_out: faces of other people, on which the training is watched (nothing is chosen by it).
        examples: `(e, n, 3)` 3D faces for the shape model, see `learn_shape_model`.
        mirror: `(n,)` index of each landmark's mirror image.
        folder: working folder, see `Workshop`.
        plan: what is trained, and for how long.
        name: the model's name.
        quiet: no progress bars.
        say: told in a line what has been done.

    Raises:
        TrainingError: too few faces, or the folder holds another training.
    """
    plan = Plan() if plan is None else plan
    workshop = Workshop(folder, plan, faces)
    model = _shape_model(workshop, faces, examples, mirror, plan.modes)
    say(f"shape model: {plan.modes} modes leave {model.noise:.2f} mm")
    posed = Posed.of(faces.with_mirrored(mirror), model)
    watched = Posed.of(held_out, model)
    arrays = (model.mean, model.components, model.eigenvalues)
    pdm = PDM(*(jnp.asarray(array, jnp.float32) for array in arrays))
    start = _learned_start(workshop, posed, watched, pdm, plan, quiet)
    trunks: list[Trained] = []
    for scale in range(len(plan.scalings)):
        before = trunks[-1] if trunks else None
        trunks.append(_trunk(workshop, posed, watched, plan, scale, before, quiet))
    whole = assemble(pdm, start, [folded(*trained) for trained in trunks], plan, name)
    # Kept to compare with.
    save_model(whole, folder / "before_fit.safetensors")
    held = one_of_each(BoxExamples(watched.faces, FIT_PICTURE, FIT_MARGIN), len(watched.faces))
    say(f"before training through the fit, held out: {summary(fit_errors(whole, held))}")
    trained = []
    for k in range(plan.fits):
        course = dataclasses.replace(plan.fit, seed=plan.fit.seed + k)
        trained.append(_through_the_fit(workshop, whole, posed, held, course, f"fit{k}", quiet))
    final = learn_readout(averaged(trained), faces, FIT_PICTURE, FIT_MARGIN)
    say(f"after it: {summary(fit_errors(final, held))}")
    return final


def fine_tune(
    model: Model,
    faces: Faces,
    held_out: Faces,
    mirror: np.ndarray,
    folder: Path,
    course: Course,
    *,
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Model:
    """Go on with the training of a model on other faces, of which a few dozen will do.

    The shape model and the learned start stay as they are; the trunks and the settings of the fit
    learn through the fit.

    Args:
        model: with trunk experts and a learned start.
        course: how long and how fast, see `fine_course`.
        faces, held_out, mirror, folder, quiet, say: as for `train_model`.

    Raises:
        TrainingError: as `train_model`, or the model is of another kind.
    """
    if not isinstance(model.experts, TrunkExperts) or model.start is None:
        raise TrainingError(
            "only a model with trunk experts and a learned start can be trained further, "
            "such as the one that comes with jclnf"
        )
    workshop = Workshop(folder, course, faces)
    pdm = jax.device_get(model.pdm)
    shapes = ShapeModel(pdm.mean, pdm.components, pdm.eigenvalues, 1.5, [])
    posed = Posed.of(faces.with_mirrored(mirror), shapes)
    watched = Posed.of(held_out, shapes)
    held = one_of_each(BoxExamples(watched.faces, FIT_PICTURE, FIT_MARGIN), len(held_out))
    say(f"before, held out: {summary(fit_errors(model, held))}")
    # Fits are trained towards the annotations themselves; what is left is learned anew.
    model = dataclasses.replace(model, readout=None)
    model = _through_the_fit(workshop, model, posed, held, course, "fit", quiet)
    model = learn_readout(model, faces, FIT_PICTURE, FIT_MARGIN)
    say(f"after: {summary(fit_errors(model, held))}")
    return model


def fine_course(count: int) -> Course:
    """A course to fine-tune on `count` faces: some hundred steps, or three epochs."""
    return Course(int(np.clip(round(2000 / count), 3, 20)), batch=16, rate=1e-4)


def assemble(pdm: PDM, start: Weights, trunks: list[Weights], plan: Plan, name: str) -> Model:
    """A model of trained networks, with settings to begin with."""
    s, n = len(trunks), pdm.n_landmarks
    experts = TrunkExperts(
        kernels={key: jnp.stack([jnp.asarray(t[key]) for t in trunks]) for key in trunks[0]},
        softness=jnp.ones(s),
        centres=jnp.zeros((s, 1, 3)),
        visible=jnp.ones((s, 1, n), bool),
        confidence=jnp.ones((s, 1, n)),
        scalings=plan.scalings,
        grid=plan.grid,
        middle=plan.middle,
    )
    defaults = FitParams(
        regularisation=jnp.linspace(1.0, 0.5, s),
        kernel_width=jnp.linspace(1.5, 1.2, s),
        weight_factor=jnp.ones(s),
        windows=plan.windows,
        iterations=plan.iterations,
    )
    kernels = {key: jnp.asarray(array) for key, array in start.items()}
    return Model(pdm, experts, defaults, name, start=LearnedStart(kernels))


def _through_the_fit(
    workshop: Workshop,
    model: Model,
    posed: Posed,
    held: Example,
    course: Course,
    stage: str,
    quiet: bool,
) -> Model:
    def report(epoch: int, loss: float, model: Model) -> None:
        workshop.note(stage, epoch, loss, float(fit_errors(model, held).mean()))

    return train_end_to_end(
        model,
        BoxExamples(posed.faces, FIT_PICTURE, FIT_MARGIN),
        len(posed.faces),
        course,
        checkpoint=workshop.checkpoint(stage),
        report=report,
        quiet=quiet,
    )


def _shape_model(
    workshop: Workshop, faces: Faces, examples: np.ndarray, mirror: np.ndarray, modes: int
) -> ShapeModel:
    file = workshop.folder / "shape_model.npz"
    if file.exists():
        with np.load(file) as arrays:
            return ShapeModel(
                mean=arrays["mean"],
                components=arrays["components"],
                eigenvalues=arrays["eigenvalues"],
                noise=float(arrays["noise"]),
                course=list(arrays["course"]),
            )
    model = learn_shape_model(faces.points, examples, mirror, modes=modes)
    with replacing(file) as part:
        np.savez(part, **dataclasses.asdict(model))
    return model


def _learned_start(
    workshop: Workshop, posed: Posed, watched: Posed, pdm: PDM, plan: Plan, quiet: bool
) -> Weights:
    held = one_of_each(BoxExamples(watched.faces), len(watched.faces))

    @jax.jit
    def landmarks(codes: Array, boxes: Array) -> Array:
        return jax.vmap(lambda code, box: project(pdm, *decode_start(pdm, box, code)))(codes, boxes)

    def report(epoch: int, loss: float, weights: Weights) -> None:
        found = landmarks(start_codes(weights, held["picture"]), held["box"])
        error = float(errors(np.asarray(found), held["points"]).mean())
        workshop.note("start", epoch, loss, error)

    trained = train_network(
        start_network,
        start_shapes(pdm.n_modes),
        ("out",),
        start_loss(pdm),
        BoxExamples(posed.faces),
        len(posed.faces),
        plan.start,
        name="start",
        checkpoint=workshop.checkpoint("start"),
        report=report,
        quiet=quiet,
    )
    return folded(*trained)


def _trunk(
    workshop: Workshop,
    posed: Posed,
    watched: Posed,
    plan: Plan,
    scale: int,
    before: Trained | None,
    quiet: bool,
) -> Trained:
    stage = f"trunk{scale}"
    disturbance: Disturbance = FINE if scale else COARSE
    scaling, loss = plan.scalings[scale], map_loss(plan.map_width)

    def examples(posed: Posed) -> TrunkExamples:
        return TrunkExamples(posed, scaling, plan.grid, plan.middle, disturbance)

    held = one_of_each(examples(watched), len(watched.faces))

    def report(epoch: int, mean: float, weights: Weights) -> None:
        parts = range(0, len(watched.faces), 32)
        losses = [
            loss(trunk_maps(weights, held["picture"][i : i + 32]), _part(held, i)) for i in parts
        ]
        workshop.note(stage, epoch, mean, float(np.mean(losses)))

    return train_network(
        trunk_network,
        trunk_shapes(posed.faces.points.shape[1], plan.channels),
        ("maps",),
        loss,
        examples(posed),
        len(posed.faces),
        plan.coarse if before is None else plan.fine,
        name=f"trunk of scale {scale}",
        start_from=before,
        checkpoint=workshop.checkpoint(stage),
        report=report,
        quiet=quiet,
    )


def _part(examples: Example, first: int) -> dict[str, Any]:
    return {key: array[first : first + 32] for key, array in examples.items()}
