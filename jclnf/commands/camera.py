"""The options that give the camera."""

import argparse
from typing import Any

from jclnf.commands import CommandError


def add_camera(group: Any) -> None:
    """Describe the options that `camera_numbers` reads to a group of options."""
    group.add_argument(
        "--focal",
        type=float,
        nargs="+",
        metavar="F",
        help="focal length in pixels, or those along x and y (default: OpenFace's guess)",
    )
    group.add_argument(
        "--centre", type=float, nargs=2, metavar=("X", "Y"), help="of the image, in pixels"
    )


def camera_numbers(
    args: argparse.Namespace,
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Focal lengths and centre as `Camera.assumed` takes them; None what was not given.

    Raises:
        CommandError: there is no such camera.
    """
    from jclnf.camera import Camera
    from jclnf.errors import ParamsError

    focal = None if args.focal is None else (args.focal[0], args.focal[-1])
    centre = None if args.centre is None else (args.centre[0], args.centre[1])
    if args.focal is not None and len(args.focal) > 2:
        raise CommandError(f"--focal takes one or two numbers, not {len(args.focal)}")
    try:
        Camera.assumed(640, 480, focal, centre)
    except ParamsError as error:
        raise CommandError(f"--focal, --centre: {error}") from error
    return focal, centre
