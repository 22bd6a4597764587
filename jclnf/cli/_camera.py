"""The options that give the camera."""

import argparse
from typing import Any

from jclnf.cli._base import CommandError


def add_camera(group: Any) -> None:
    """Describe the options that `camera_numbers` reads to a group of options."""
    group.add_argument(
        "--focal",
        metavar="F[,F]",
        help="focal length in pixels, or those along x and y (default: OpenFace's guess)",
    )
    group.add_argument("--centre", metavar="X,Y", help="of the image, in pixels")


def camera_numbers(
    args: argparse.Namespace,
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Focal lengths and centre as `Camera.assumed` takes them; None what was not given.

    Raises:
        CommandError: there is no such camera.
    """
    from jclnf.errors import ParamsError
    from jclnf.space import Camera

    focal, centre = _numbers("focal", args.focal, 1), _numbers("centre", args.centre, 2)
    try:
        Camera.assumed(640, 480, focal, centre)
    except ParamsError as error:
        raise CommandError(f"--focal, --centre: {error}") from error
    return focal, centre


def _numbers(name: str, text: str | None, least: int) -> tuple[float, float] | None:
    """The one (used for both) or two numbers of an option."""
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not least <= len(numbers) <= 2:
        wanted = "two numbers" if least == 2 else "one or two numbers"
        raise CommandError(f"--{name} takes {wanted}, separated by a comma, not {text!r}")
    return numbers[0], numbers[-1]
