"""`jclnf train`: a model from annotated photographs."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jclnf.cli._base import OK, CommandError, complain, printable
from jclnf.cli._learning import add_options, check_options, split_people
from jclnf.errors import JclnfError

if TYPE_CHECKING:
    from jclnf.annotations import AnnotatedFace
    from jclnf.train._faces import Faces

FEWEST = 16
"""Faces under which there is nothing to learn from."""
MOST_DEVICES = 8
"""Cores that are used; steps of batches are not shared any further."""

_EPILOG = """\
data:
  a CSV file with the columns image, x_0, y_0 ... (0-based pixels) and, if there are, identity and
  split; a folder of images with .pts files beside them (as of 300-W); or dlib's XML. Landmarks are
  the 68 points of the iBUG scheme. Faces of one identity are never in both parts of the data.

output:
  MODEL                    the trained model
  MODEL.training/          checkpoints; course.csv with the loss and the error on the faces held
                           out after each epoch; course.png (with the extra "plots"). It may be
                           removed when the training is done
A training that was interrupted goes on where it stood when the command is run again.

examples:
  jclnf train faces/landmarks.csv --split train --out model.safetensors
  jclnf train patients/ --from default --out patients.safetensors
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    p = subparsers.add_parser(
        "train",
        help="train a model, or train one further, on annotated photographs",
        description="Train a model on annotated photographs, or train an existing one further.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(run=run)
    add_options(p, "training")
    p.add_argument(
        "--from",
        dest="source",
        metavar="MODEL",
        help="train this model further instead of one from nothing; `default` is the one that "
        "comes with jclnf. Fifty photographs will do",
    )
    p.add_argument(
        "--effort",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="factor on the length of all stages (default: 1, which takes about an hour for 3,000 "
        "faces on two cores)",
    )
    p.add_argument(
        "--shape-prior",
        metavar="NPZ",
        help="3D faces that the shape model starts from: an array `examples` (e, 68, 3) in "
        "millimetres, x right, y down, z away from the viewer (default: drawn from the shape "
        "model that comes with jclnf)",
    )


def run(args: argparse.Namespace) -> int:
    """Train; return the exit code."""
    out, folder = check_options(args)
    if not args.effort > 0:
        raise CommandError("--effort lies above 0")
    # One device a core, each with one thread: faster than threads within a convolution. It must
    # be said before JAX is first used.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    from jclnf.runtime import use_all_cores

    use_all_cores(MOST_DEVICES)
    try:
        _train(args, out, folder)
    except JclnfError as error:
        raise CommandError(str(error)) from error
    return OK


def _train(args: argparse.Namespace, out: Path, folder: Path) -> None:
    import dataclasses

    import jclnf
    from jclnf.annotations import read_annotations
    from jclnf.train._faces import MIRROR_68
    from jclnf.train._pipeline import Plan, fine_course, fine_tune, train_model
    from jclnf.train._uncertainty import calibrate_uncertainty

    def say(text: str) -> None:
        if not args.quiet:
            print(printable(text), flush=True)

    jclnf.enable_compilation_cache()
    annotated = read_annotations(args.data, split=args.split)
    if len(annotated) < FEWEST:
        raise CommandError(f"{args.data}: {len(annotated)} faces are too few, {FEWEST} the least")
    n = len(annotated[0].landmarks)
    if n != len(MIRROR_68):
        raise CommandError(f"{args.data}: {n} landmarks; only the 68-point scheme can be trained")
    parts = split_people(args, annotated)
    faces, held_out = (_read(part, args.quiet) for part in parts)
    say(f"{len(faces)} faces to learn from, {len(held_out)} held out")
    if args.source is not None:
        model = jclnf.load_model(args.source)
        course = fine_course(len(faces)).adapted(args.effort, args.seed)
        model = fine_tune(
            model, faces, held_out, MIRROR_68, folder, course, quiet=args.quiet, say=say
        )
    else:
        plan = Plan().adapted(args.effort, args.seed)
        examples = _examples(args.shape_prior, args.seed)
        model = train_model(
            faces,
            held_out,
            examples,
            MIRROR_68,
            folder,
            plan,
            name=out.stem,
            quiet=args.quiet,
            say=say,
        )
    say("learning how far fits are to be trusted")
    model = dataclasses.replace(
        model,
        name=out.stem,
        confidence=_confidence(model, faces, held_out, args),
        uncertainty=calibrate_uncertainty(
            model, held_out, MIRROR_68, effort=min(args.effort, 1.0), seed=args.seed
        ),
    )
    jclnf.save_model(model, out)
    say(f"model in {out}, course in {folder / 'course.csv'}")
    _draw_course(folder)


def _confidence(model: Any, faces: "Faces", held_out: "Faces", args: argparse.Namespace) -> Any:
    """The confidence of a trained model: one that it had before, calibrated anew, or a new one."""
    import dataclasses

    from jclnf.train._confidence import COURSE, adapt_confidence, learn_confidence
    from jclnf.train._faces import MIRROR_68

    effort, course = min(args.effort, 1.0), dataclasses.replace(COURSE, seed=args.seed)
    if model.confidence is not None:
        before = model.confidence
        return adapt_confidence(model, before, held_out, MIRROR_68, effort=effort, seed=args.seed)
    return learn_confidence(
        model, faces, held_out, MIRROR_68, course, effort=effort, quiet=args.quiet
    )


def _read(annotated: "list[AnnotatedFace]", quiet: bool) -> "Faces":
    """The faces of photographs; those that cannot be read cost a line each."""
    from tqdm import tqdm

    from jclnf.images import read_photo
    from jclnf.train._faces import Faces, cut_out

    pictures, points = [], []
    for face in tqdm(annotated, desc="reading", disable=quiet):
        try:
            picture, moved = cut_out(read_photo(face.image).grey, face.landmarks)
        except JclnfError as error:
            complain(str(error))
            continue
        pictures.append(picture)
        points.append(moved)
    if not pictures:
        raise CommandError("none of the photographs can be read")
    return Faces(pictures, np.array(points))


def _examples(path: str | None, seed: int) -> np.ndarray:
    """3D faces for the shape model: of a file, or drawn from the bundled model."""
    if path is not None:
        try:
            with np.load(path) as arrays:
                examples = np.asarray(arrays["examples"], float)
        except (OSError, ValueError, KeyError) as error:
            raise CommandError(f"{path}: holds no array `examples` ({error})") from None
        if examples.ndim != 3 or examples.shape[1:] != (68, 3) or not np.isfinite(examples).all():
            raise CommandError(f"{path}: `examples` must be finite and (e, 68, 3)")
        return examples
    import jclnf

    pdm = jclnf.load_model().pdm
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(1000, pdm.n_modes)) * np.sqrt(np.asarray(pdm.eigenvalues))
    return np.asarray(pdm.mean) + np.einsum("ncm,em->enc", np.asarray(pdm.components), latent)


def _draw_course(folder: Path) -> None:
    """Draw the course of the training, if matplotlib is there."""
    from jclnf.train._course import draw_course

    try:
        draw_course(folder / "course.csv", folder / "course.png")
    except ImportError:
        complain("course.png needs matplotlib: pip install 'jclnf[plots]'")
