"""`jclnf tune`: a model's settings, experts or shape model, tuned on annotated photographs."""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.cli._base import OK, CommandError, complain, printable
from jclnf.cli._learning import add_options, check_options, split_people
from jclnf.errors import JclnfError

_EPILOG = """\
data:
  as for `jclnf train` and `jclnf eval`; landmarks as many as the model has

output:
  MODEL                    the tuned model, with the tuned settings as its defaults
  MODEL.tuning/            checkpoint; course.csv with the loss and the error on the faces held out
                           after each epoch (0 is before); offset.csv (with --offset). It may be
                           removed when the tuning is done
A tuning that was interrupted goes on where it stood when the command is run again.

examples:
  jclnf tune faces/ --model clnf_general --what params --starts 11 --offset --out tuned.safetensors
  jclnf tune dark/ --model default --what experts --out dark.safetensors
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    p = subparsers.add_parser(
        "tune",
        help="tune a model's settings, experts or shape model on annotated photographs",
        description="Tune a model by gradient descent through its fits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(run=run)
    add_options(p, "tuning")
    p.add_argument(
        "--model",
        metavar="MODEL",
        default="default",
        help="as `jclnf fit --model` takes it, or `default` for the model that comes with jclnf",
    )
    p.add_argument(
        "--what",
        default="params",
        choices=("params", "experts", "start", "pdm", "all"),
        help="what is tuned: the settings of each scale and the weight of each landmark (default), "
        "the patch experts, the learned start, the shape model, or everything (but the start)",
    )
    p.add_argument("--boxes", metavar="CSV", help="start boxes, as for `jclnf eval`")
    p.add_argument(
        "--starts",
        type=int,
        choices=(1, 11),
        default=1,
        help="start each face from the likeliest of so many head rotations (default: 1)",
    )
    p.add_argument(
        "--offset",
        action="store_true",
        help="the data mean something else by some landmarks: learn that as a constant offset",
    )
    p.add_argument("--epochs", type=int, default=8, help="passes over the faces (default: 8)")
    p.add_argument("--patience", type=int, metavar="N", help="end after N epochs without progress")


def run(args: argparse.Namespace) -> int:
    """Tune; return the exit code."""
    out, folder = check_options(args)
    if args.epochs < 1:
        raise CommandError("--epochs is at least 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{folder}: cannot be written ({error.strerror})") from None
    from jclnf.runtime import use_all_cores

    use_all_cores(8)
    try:
        _tune(args, out, folder)
    except JclnfError as error:
        raise CommandError(str(error)) from error
    return OK


def _tune(args: argparse.Namespace, out: Path, folder: Path) -> None:
    import dataclasses

    import jclnf
    from jclnf.cli._eval import start_boxes
    from jclnf.train._tune import COURSE

    jclnf.enable_compilation_cache()
    model = jclnf.load_model(None if args.model == "default" else args.model)
    faces = jclnf.annotations.read_annotations(args.data, split=args.split)
    parts = split_people(args, faces)
    learned, held_out = (_read(part, start_boxes(args.boxes, part)[0]) for part in parts)
    # A batch is not larger than there are faces.
    batch = min(COURSE.batch, len(learned[0]))
    course = dataclasses.replace(COURSE, epochs=args.epochs, seed=args.seed, batch=batch)
    tuned = jclnf.train.tune(
        model,
        *learned,
        what=args.what,
        validation=held_out,
        rotations=jclnf.openface.ROTATIONS if args.starts > 1 else None,
        offset=args.offset,
        course=course,
        patience=args.patience,
        checkpoint=folder / "tuning.eqx",
        quiet=args.quiet,
    )
    jclnf.save_model(dataclasses.replace(tuned.model, name=out.stem), out)
    with (folder / "course.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "loss", "validation"])
        writer.writeheader()
        writer.writerows(tuned.course)
    if args.offset:
        np.savetxt(folder / "offset.csv", tuned.offset, "%.6f", delimiter=",", header="x,y")
    if not args.quiet:
        before, best = tuned.course[0]["validation"], tuned.course[tuned.epoch]["validation"]
        print(
            f"held out: {before:.2f} % of the eye distance before, {best:.2f} % after "
            f"{tuned.epoch} of {len(tuned.course) - 1} epochs"
        )
        print(printable(f"model in {out}, course in {folder / 'course.csv'}"))


def _read(faces: Any, boxes: Any) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Crops of the photographs, boxes and landmarks in them; what cannot be read costs a line."""
    from jclnf.images import crop, read_image

    pieces, landmarks = [], []
    for face, box in zip(faces, boxes, strict=True):
        try:
            if box is None:
                raise JclnfError(f"{face.image}: there is no box for it")
            piece = crop(read_image(face.image), box)
        except JclnfError as error:
            complain(str(error))
            continue
        pieces.append(piece)
        landmarks.append(face.landmarks - piece.offset)
    if not pieces:
        raise CommandError("none of the photographs can be used")
    images = [piece.image for piece in pieces]
    return images, np.array([piece.box for piece in pieces]), np.array(landmarks)
