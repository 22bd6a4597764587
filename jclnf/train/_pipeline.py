"""From annotated faces to a model: shape model, learned start, trunks, and the whole fit.

Every stage leaves a checkpoint in the run directory after each epoch, and one that is finished is
not done again: a training that was interrupted is resumed where it stood.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jclnf.errors import TrainingError
from jclnf.experts import TrunkExperts, WholeFaceExperts, trunk_network, trunk_shapes
from jclnf.files import save_model
from jclnf.fitting import Confidence, LearnedStart, Model, start_network, start_shapes
from jclnf.geometry import PDM
from jclnf.params import FitParams, to_device
from jclnf.train._checkpoint import load_checkpoint, save_checkpoint
from jclnf.train._confidence import CONFIDENCE_CONFIG, adapt_confidence, learn_confidence
from jclnf.train._end_to_end import averaged, train_end_to_end
from jclnf.train._examples import COARSE, FINE, BoxExamples, Example, TrunkExamples
from jclnf.train._faces import Faces, Posed
from jclnf.train._loop import TrainConfig
from jclnf.train._networks import (
    Unfolded,
    Weights,
    folded,
    map_loss,
    start_loss,
    train_network,
)
from jclnf.train._readout import learn_readout
from jclnf.train._run_directory import RunDirectory
from jclnf.train._shape_model import ShapeModel, learn_shape_model
from jclnf.train._uncertainty import calibrate_uncertainty
from jclnf.train._validation import fit_errors, one_of_each, summary

Log = Callable[[str], None]
PATIENCE = 4
"""Epochs without a better figure after which fine-tuning ends."""


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """The steps of a training, and how long each takes.

    Attributes:
        modes: modes of the shape model.
        channels: of the trunk at each of its resolutions, see `jclnf.experts.trunk_shapes`.
        grid: side of the maps in cells.
        scalings: cells per millimetre at each scale.
        middle: centre of the maps from the landmarks' centroid, millimetres.
        windows: sides of the windows in cells.
        iterations: of each pass at each scale.
        map_width: standard deviation in cells of the maps that are to be learned.
        start: of the learned start.
        coarse: of the first scale's trunk, from nothing.
        fine: of each later scale's trunk, from the one before. One scale is enough: a second
            doubles the time of a fit for a hundredth of the error.
        fit: of the whole fit.
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
    start: TrainConfig = TrainConfig(80, batch_size=64)
    coarse: TrainConfig = TrainConfig(36)
    fine: TrainConfig = TrainConfig(7, learning_rate=1e-3)
    fit: TrainConfig = TrainConfig(12, learning_rate=2e-4)
    fits: int = 3

    def scaled(self, effort: float, seed: int) -> "PipelineConfig":
        """The same with all trainings `effort` times as long, and another seed."""
        names = ("start", "coarse", "fine", "fit")
        changes = {name: getattr(self, name).scaled(effort, seed) for name in names}
        return dataclasses.replace(self, **changes)


def with_confidence(
    model: Model,
    faces: Faces,
    held_out: Faces,
    mirror: np.ndarray,
    *,
    effort: float = 1.0,
    seed: int = 0,
    quiet: bool = False,
) -> Model:
    """A trained model with the last of its parts: how far each fit is to be trusted, and how far
    its landmarks may be off.

    A confidence that the model has is calibrated anew, one that it has not is learned.

    Args:
        model: of 68 landmarks.
        faces: what it has learned from.
        held_out: faces of other people, to calibrate on.
        mirror: `(n,)` index of each landmark's mirror image.
        effort: factor on the numbers of fits.
        seed: of what is drawn at random.
        quiet: no progress bar.
    """
    before = model.confidence
    if isinstance(before, Confidence):
        confidence = adapt_confidence(model, before, held_out, mirror, effort=effort, seed=seed)
    else:
        config = dataclasses.replace(CONFIDENCE_CONFIG, seed=seed)
        confidence = learn_confidence(
            model, faces, held_out, mirror, config, effort=effort, quiet=quiet
        )
    uncertainty = calibrate_uncertainty(model, held_out, mirror, effort=effort, seed=seed)
    return dataclasses.replace(model, confidence=confidence, uncertainty=uncertainty)


def train_model(
    faces: Faces,
    held_out: Faces,
    examples: np.ndarray,
    mirror: np.ndarray,
    folder: Path,
    config: PipelineConfig | None = None,
    *,
    name: str = "",
    quiet: bool = False,
    log: Log = lambda _: None,
) -> Model:
    """Train a model from nothing. With fewer than some hundred faces, use `fine_tune`.

    Args:
        faces: what to learn from.
        held_out: faces of other people, on which the training is watched (nothing is chosen by it).
        examples: `(e, n, 3)` 3D faces for the shape model, see `learn_shape_model`.
        mirror: `(n,)` index of each landmark's mirror image.
        folder: where the training is kept, see `RunDirectory`.
        config: what is trained, and for how long.
        name: the model's name.
        quiet: no progress bars.
        log: called with a line on each thing that has been done.

    Raises:
        TrainingError: too few faces, a checkpoint that cannot be used, or the folder holds another
            training.
    """
    config = PipelineConfig() if config is None else config
    run = RunDirectory(folder, config, faces, quiet=quiet)
    shape_model = _shape_model(run, faces, examples, mirror, config.modes)
    log(f"shape model: {config.modes} modes leave {shape_model.noise:.2f} mm")
    posed = Posed.of(faces.with_mirrored(mirror), shape_model)
    watched = Posed.of(held_out, shape_model)
    pdm = shape_model.pdm
    start = train_network(
        start_network,
        start_shapes(pdm.n_modes),
        ("out",),
        start_loss(pdm),
        BoxExamples(posed.faces),
        BoxExamples(watched.faces),
        config.start,
        run.progress("start"),
    )
    trunks: list[Unfolded] = []
    for scale in range(len(config.scalings)):
        before = trunks[-1] if trunks else None
        trunks.append(_trunk(run, posed, watched, config, scale, before))
    model = assemble(pdm, folded(*start), [folded(*trained) for trained in trunks], config, name)
    save_model(model, folder / "before_fit.safetensors")  # to compare with
    watched_fits = one_of_each(BoxExamples.of_fits(held_out))
    log(f"before training through the fit, held out: {summary(fit_errors(model, watched_fits))}")
    trained = []
    for k in range(config.fits):
        fit_config = dataclasses.replace(config.fit, seed=config.fit.seed + k)
        trained.append(
            _through_the_fit(run, f"fit{k}", model, posed.faces, watched_fits, fit_config)
        )
    model = learn_readout(averaged(trained), faces)
    log(f"after it: {summary(fit_errors(model, watched_fits))}")
    return model


def fine_tune(
    model: Model,
    faces: Faces,
    held_out: Faces,
    mirror: np.ndarray,
    folder: Path,
    config: TrainConfig | None = None,
    *,
    quiet: bool = False,
    log: Log = lambda _: None,
) -> Model:
    """Train a model further on other faces, of which a few dozen will do.

    The shape model and the learned start stay as they are; the experts and the settings of the fit
    learn through the fit. The best epoch on the faces held out is kept, with or without a readout
    of its own; or the model's own experts with one. If none of these is clearly better there than
    the model was (by more than the standard error of the difference), the model stays as it is.

    Args:
        model: with experts that see the whole face.
        faces: what to learn from.
        held_out: faces of other people, by which it is chosen what is kept.
        mirror: `(n,)` index of each landmark's mirror image.
        folder: where the training is kept, see `RunDirectory`.
        config: how long at most, and how fast; `fine_tune_config` if not given.
        quiet: no progress bars.
        log: called with a line on each thing that has been done.

    Raises:
        TrainingError: as `train_model`, or the model is of another kind.
    """
    if not isinstance(model.experts, WholeFaceExperts):
        raise TrainingError(
            "only a model whose experts see the whole face can be trained further, such as the "
            "one that comes with jclnf"
        )
    config = fine_tune_config(len(faces)) if config is None else config
    run = RunDirectory(folder, config, faces, quiet=quiet)
    watched = one_of_each(BoxExamples.of_fits(held_out))
    before = fit_errors(model, watched)
    log(f"before, held out: {summary(before)}")
    # Fits are trained towards the annotations themselves; what is left is learned anew.
    plain = dataclasses.replace(model, readout=None)
    both_ways = faces.with_mirrored(mirror)
    best = _through_the_fit(run, "fit", plain, both_ways, watched, config, patience=PATIENCE)
    found = [best, learn_readout(best, faces), learn_readout(plain, faces)]
    errors = [fit_errors(candidate, watched) for candidate in found]
    chosen = int(np.argmin([each.mean() for each in errors]))
    gain = before - errors[chosen]
    if gain.mean() <= gain.std() / np.sqrt(max(len(gain) - 1, 1)):
        log("after: not clearly better, so the model stays as it was: give more faces")
        return model
    log(f"after: {summary(errors[chosen])}")
    return found[chosen]


def fine_tune_config(count: int) -> TrainConfig:
    """How to fine-tune on `count` faces: some hundred steps, or three epochs."""
    epochs = int(np.clip(round(2000 / count), 3, 20))
    return TrainConfig(epochs, batch_size=16, learning_rate=1e-4)


def assemble(
    pdm: PDM, start: Weights, trunks: list[Weights], config: PipelineConfig, name: str
) -> Model:
    """A model of trained networks, with settings to begin with."""
    s, n = len(trunks), pdm.n_landmarks
    experts = TrunkExperts(
        kernels={key: to_device(np.stack([t[key] for t in trunks])) for key in trunks[0]},
        softness=jnp.ones(s),
        centres=jnp.zeros((s, 1, 3)),
        visible=jnp.ones((s, 1, n), bool),
        confidence=jnp.ones((s, 1, n)),
        scalings=config.scalings,
        grid=config.grid,
        middle=config.middle,
    )
    defaults = FitParams(
        regularisation=jnp.linspace(1.0, 0.5, s),
        kernel_width=jnp.linspace(1.5, 1.2, s),
        weight_factor=jnp.ones(s),
        windows=config.windows,
        iterations=config.iterations,
    )
    kernels = {key: to_device(array) for key, array in start.items()}
    return Model(pdm, experts, defaults, name, start=LearnedStart(kernels))


def _through_the_fit(
    run: RunDirectory,
    stage: str,
    model: Model,
    faces: Faces,
    watched: list[Example],
    config: TrainConfig,
    patience: int | None = None,
) -> Model:
    return train_end_to_end(
        model,
        BoxExamples.of_fits(faces),
        config,
        run.progress(stage),
        validate=lambda model: float(fit_errors(model, watched).mean()),
        patience=patience,
    )


def _shape_model(
    run: RunDirectory, faces: Faces, examples: np.ndarray, mirror: np.ndarray, modes: int
) -> ShapeModel:
    file = run.checkpoint("shape_model")
    if file.exists():
        _, n, axes = examples.shape
        modes = min(modes, len(examples), n * axes)
        like = np.zeros((n, axes)), np.zeros((n, axes, modes)), np.zeros(modes)
        (mean, components, variances), noises = load_checkpoint(file, like)
        return ShapeModel(mean, components, variances, noises[-1], tuple(noises))
    model = learn_shape_model(faces.points, examples, mirror, modes=modes)
    save_checkpoint(file, (model.mean, model.components, model.eigenvalues), model.noises)
    return model


def _trunk(
    run: RunDirectory,
    posed: Posed,
    watched: Posed,
    config: PipelineConfig,
    scale: int,
    before: Unfolded | None,
) -> Unfolded:
    def examples(posed: Posed) -> TrunkExamples:
        perturbation = FINE if scale else COARSE
        scaling = config.scalings[scale]
        return TrunkExamples(posed, scaling, config.grid, config.middle, perturbation)

    return train_network(
        trunk_network,
        trunk_shapes(posed.faces.points.shape[1], config.channels),
        ("maps",),
        map_loss(config.map_width),
        examples(posed),
        examples(watched),
        config.coarse if before is None else config.fine,
        run.progress(f"trunk{scale}"),
        start_from=before,
    )
