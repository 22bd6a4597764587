"""What `jclnf train` and `jclnf tune` have in common: options, and whom to learn from."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclnf.cli._base import CommandError

if TYPE_CHECKING:
    from jclnf.annotations import AnnotatedFace


def add_options(p: argparse.ArgumentParser, folder: str) -> None:
    """Describe the common options; `folder` is the ending of the working folder's name."""
    p.add_argument("data", metavar="DATA", help="annotated photographs")
    p.add_argument("--out", metavar="MODEL", required=True, help="file to write (.safetensors)")
    p.add_argument("--split", metavar="NAME", help="only faces of this split of the data")
    p.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="PART",
        help="part of the people to watch the training on instead of learning from them "
        "(default: 0.1)",
    )
    p.add_argument(
        "--work",
        metavar="DIR",
        help=f"where the checkpoints and the training curves are kept (default: MODEL.{folder})",
    )
    p.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    p.set_defaults(folder=folder)


def check_options(args: argparse.Namespace) -> tuple[Path, Path]:
    """The file to write, and the working folder."""
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise CommandError(f"{out}: a model's file name ends in .safetensors")
    if not 0 < args.held_out < 1:
        raise CommandError("--held-out lies between 0 and 1")
    return out, Path(args.work) if args.work else out.with_name(f"{out.name}.{args.folder}")


def split_people(
    args: argparse.Namespace, faces: "Sequence[AnnotatedFace]"
) -> "tuple[list[AnnotatedFace], list[AnnotatedFace]]":
    """The faces to learn from and those held out, of different people."""
    from jclnf.annotations import split_by_identity

    parts: Any = split_by_identity(faces, args.held_out, args.seed)
    if not all(parts):
        raise CommandError(
            f"{args.data}: with {args.held_out:g} of the people held out, no faces are left on "
            "one side: change --held-out"
        )
    return parts
