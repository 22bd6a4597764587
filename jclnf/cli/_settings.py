"""The options that change a fit's settings, of all commands that fit."""

import argparse
from typing import Any


def add_settings(parser: argparse.ArgumentParser) -> Any:
    """Describe the options that `fit_params` reads; return their group."""
    fit = parser.add_argument_group("the fit (default: as the model was trained)")
    add_numbers(fit)
    fit.add_argument(
        "--windows",
        type=_windows,
        metavar="A,B,...",
        help="search window in pixels at each scale, coarse to fine; 0 leaves a scale out",
    )
    fit.add_argument(
        "--starts",
        type=int,
        choices=(1, 11),
        help="head rotations to start from, of which the likeliest fit is kept (default: as the "
        "model has it: the one that comes with jclnf has a learned start, OpenFace's have 11; "
        "without a learned start, 1 is faster and enough for faces towards the camera)",
    )
    return fit


def add_numbers(fit: Any) -> None:
    """Describe arithmetic and iterations to a group of options."""
    fit.add_argument(
        "--arithmetic",
        choices=("exact", "openface"),
        help="openface follows OpenFace's numerical short cuts (default: as the model has it, "
        "which is exact unless it says otherwise)",
    )
    fit.add_argument("--iterations", type=int, metavar="N", help="of each pass at each scale")


def fit_params(args: argparse.Namespace, model: Any) -> Any:
    """The model's settings with those that the options give. Raises ParamsError."""
    names = ("arithmetic", "iterations", "windows")
    from jclnf.openface import ROTATIONS

    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    starts = getattr(args, "starts", None)
    if starts is not None:
        changes["rotations"] = ROTATIONS if starts > 1 else None
    return model.defaults.replace(**changes)


def _windows(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of whole numbers such as 11,9,7"
        ) from None
