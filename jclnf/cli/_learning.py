"""Shared by `jclnf train` and `jclnf tune`: checked options, and whom to learn from."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from jclnf.annotations import AnnotatedFace, read_annotations, split_by_identity
from jclnf.cli._base import CommandError, complain, printable
from jclnf.cli._commands import Train, Tune
from jclnf.images import names
from jclnf.outputs import claim, make_folder, write_bytes

HELD_OUT = "held_out.csv"


def check_options(options: Train | Tune, folder: str) -> Path:
    """The working folder, whose name ends in `folder` unless an option names another."""
    out = options.out
    if out.suffix != ".safetensors":
        raise CommandError(f"{out}: a model's file name ends in .safetensors")
    before = options.source if isinstance(options, Train) else options.model
    if before is not None and os.path.realpath(before) == os.path.realpath(out):
        raise CommandError(f"{out}: is the model to begin with, and is kept: give another --out")
    if not 0 < options.held_out < 1:
        raise CommandError("--held-out lies between 0 and 1")
    return options.work or out.with_name(f"{out.name}.{folder}")


def read_faces(options: Train | Tune) -> list[AnnotatedFace]:
    """The annotated faces, of which it is known whose they are."""
    faces = read_annotations(
        options.data,
        split=options.split,
        identity=options.identity,
        note=lambda line: None if options.quiet else complain(line),
    )
    if unknown := [face.image for face in faces if not face.identity]:
        raise CommandError(
            f"{options.data}: it is not known whose {len(unknown)} of {len(faces)} faces are "
            f"({names(unknown)}), and one person's must not be both learned from and held out: "
            "give --identity PATTERN, or --identity '.*' if each image is of another person"
        )
    return faces


def split_people(
    options: Train | Tune, faces: Sequence[AnnotatedFace]
) -> tuple[list[AnnotatedFace], list[AnnotatedFace]]:
    """The faces to learn from and those held out, of different people."""
    learned, held_out = split_by_identity(faces, options.held_out, options.seed)
    if not (learned and held_out):
        raise CommandError(
            f"{options.data}: with {options.held_out:g} of the people held out, no faces are left "
            "on one side: change --held-out"
        )
    return learned, held_out


def begin_folder(
    options: Train | Tune, folder: Path, written: Sequence[str], held_out: Sequence[AnnotatedFace]
) -> None:
    """Make the working folder, and say, there too, who is held out.

    Args:
        options: of the command.
        folder: where its checkpoints are.
        written: what else it will write there that could be taken for something else.
        held_out: the faces held out.
    """
    make_folder(folder)
    command = type(options).__name__.lower()
    claim(folder, command, fixed=[*written, HELD_OUT], inputs=[options.data])
    people = sorted({face.identity for face in held_out})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "identity"])
    writer.writerows((face.image, face.identity) for face in held_out)
    write_bytes(folder / HELD_OUT, text.getvalue().encode(errors="surrogateescape"))
    if not options.quiet:
        who = f"{len(people)} people with {len(held_out)} faces, {names(people)}"
        print(printable(f"held out: {who}; all in {folder / HELD_OUT}"), flush=True)
