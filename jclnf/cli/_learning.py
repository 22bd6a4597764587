"""Shared by `jclnf train` and `jclnf tune`: checked options, and whom to learn from."""

from collections.abc import Sequence
from pathlib import Path

from jclnf.annotations import AnnotatedFace, split_by_identity
from jclnf.cli._base import CommandError
from jclnf.cli._commands import Train, Tune


def check_options(options: Train | Tune, folder: str) -> Path:
    """The working folder, whose name ends in `folder` unless an option names another."""
    out = options.out
    if out.suffix != ".safetensors":
        raise CommandError(f"{out}: a model's file name ends in .safetensors")
    if not 0 < options.held_out < 1:
        raise CommandError("--held-out lies between 0 and 1")
    return options.work or out.with_name(f"{out.name}.{folder}")


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
