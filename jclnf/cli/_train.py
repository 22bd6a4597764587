"""`jclnf train`: a model from annotated images."""

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np

import jclnf
from jclnf.annotations import AnnotatedFace
from jclnf.cli._base import OK, CommandError, complain, printable
from jclnf.cli._commands import Train
from jclnf.cli._learning import begin_folder, check_options, read_faces, split_people
from jclnf.cli._settings import start_jax
from jclnf.errors import JclnfError
from jclnf.images import read_image
from jclnf.runtime import Meter, use_all_cores, use_one_thread_each
from jclnf.train import (
    MIRROR_68,
    Faces,
    PipelineConfig,
    cut_out,
    draw_training_curves,
    fine_tune,
    fine_tune_config,
    train_model,
    with_confidence,
)

FEWEST = 16
"""Faces under which there is nothing to learn from."""
MOST_DEVICES = 8
"""Cores that are used; steps of batches are not shared any further."""


def run(options: Train) -> int:
    """Train; return the exit code."""
    folder = check_options(options, "training")
    if not options.effort > 0:
        raise CommandError("--effort lies above 0")
    # One device a core, each with one thread: faster than threads within a convolution. It must
    # be said before JAX is first used.
    use_one_thread_each()
    use_all_cores(MOST_DEVICES)

    def log(text: str) -> None:
        if not options.quiet:
            print(printable(text), flush=True)

    start_jax(options)
    annotated = read_faces(options)
    if len(annotated) < FEWEST:
        raise CommandError(
            f"{options.data}: {len(annotated)} faces are too few, {FEWEST} the least"
        )
    n = len(annotated[0].landmarks)
    if n != len(MIRROR_68):
        raise CommandError(
            f"{options.data}: {n} landmarks; only the 68-point scheme can be trained"
        )
    parts = split_people(options, annotated)
    begin_folder(options, folder, ("curves.csv", "curves.png"), parts[1])
    faces, held_out = (_read(part, options.quiet) for part in parts)
    log(f"{len(faces)} faces to learn from, {len(held_out)} held out")
    if options.source is not None:
        model = jclnf.load_model(options.source)
        config = fine_tune_config(len(faces)).scaled(options.effort, options.seed)
        model = fine_tune(
            model, faces, held_out, MIRROR_68, folder, config, quiet=options.quiet, log=log
        )
    else:
        pipeline = PipelineConfig().scaled(options.effort, options.seed)
        examples = _examples(options.shape_prior, options.seed)
        model = train_model(
            faces,
            held_out,
            examples,
            MIRROR_68,
            folder,
            pipeline,
            name=options.out.stem,
            quiet=options.quiet,
            log=log,
        )
    log("learning how far fits are to be trusted")
    model = with_confidence(
        dataclasses.replace(model, name=options.out.stem),
        faces,
        held_out,
        MIRROR_68,
        effort=min(options.effort, 1.0),
        seed=options.seed,
        quiet=options.quiet,
    )
    jclnf.save_model(model, options.out)
    log(f"model in {options.out}, training curves in {folder / 'curves.csv'}")
    _draw_curves(folder)
    return OK


def _read(annotated: list[AnnotatedFace], quiet: bool) -> Faces:
    """The faces of images; those that cannot be read cost a line each."""
    images, points = [], []
    for face in Meter("reading", len(annotated), unit="images", quiet=quiet).over(annotated):
        try:
            image, moved = cut_out(read_image(face.image), face.landmarks)
        except JclnfError as error:
            complain(str(error))
            continue
        images.append(image)
        points.append(moved)
    if not images:
        raise CommandError("none of the images can be read")
    return Faces(images, np.array(points))


def _examples(path: str | None, seed: int) -> np.ndarray:
    """3D faces for the shape model: of a file, or drawn from the bundled model."""
    if path is not None:
        try:
            with np.load(path) as arrays:
                examples = np.asarray(arrays["examples"], float)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise CommandError(f"{path}: holds no array `examples` ({error})") from None
        if examples.ndim != 3 or examples.shape[1:] != (68, 3) or not np.isfinite(examples).all():
            raise CommandError(f"{path}: `examples` must be finite and (e, 68, 3)")
        return examples
    pdm = jclnf.load_model().pdm
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(1000, pdm.n_modes)) * np.sqrt(np.asarray(pdm.eigenvalues))
    return np.asarray(pdm.mean) + np.einsum("ncm,em->enc", np.asarray(pdm.components), latent)


def _draw_curves(folder: Path) -> None:
    """Draw the training curves, if matplotlib is there."""
    try:
        draw_training_curves(folder / "curves.csv", folder / "curves.png")
    except ImportError:
        complain("curves.png needs matplotlib: pip install 'jclnf[plots]'")
