"""Draw every frame and sign of the tables: image, camera, head rotation and gaze.

    python -m experiments.openface_csv.frames

The mean shape of the bundled model is placed in space and seen by `jclnf.space.Camera`. The
numbers under the images are measured from what the camera sees, by `jclnf.space.head_pose` and
`jclnf.space.gaze`.
"""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

import jclnf
from experiments.common import command_line
from jclnf.geometry import (
    Pose,
    euler_to_matrix,
    shape3d,
)
from jclnf.space import EYES
from jclnf.space._gaze import CENTRE, CORNERS, RADIUS

HERE = Path(__file__).resolve().parent

WIDTH, HEIGHT = 640, 480
CAMERA = jclnf.space.Camera.assumed(WIDTH, HEIGHT)
PDM = jclnf.load_model().pdm
MEAN = np.asarray(shape3d(PDM, jnp.zeros(PDM.n_modes)))
RUNS = [
    *(list(range(a, b + 1)) for a, b in ((0, 16), (17, 21), (22, 26), (27, 30), (31, 35))),
    *([*range(a, b + 1), a] for a, b in ((36, 41), (42, 47), (48, 59), (60, 67))),
    [30, 33],
]
TIP = 30
COLOURS = {"x": "#c62828", "y": "#2e7d32", "z": "#1565c0"}
FACE, NOSE = "#37474f", "#ef6c00"


def matrix(rotation: Any) -> np.ndarray:
    return np.asarray(euler_to_matrix(jnp.asarray(rotation, jnp.float32)))


def look(points: Any) -> np.ndarray:
    """Pixels of points of any shape `(..., 3)`."""
    flat = jnp.asarray(points, jnp.float32).reshape(-1, 3)
    return np.asarray(CAMERA.project(flat)).reshape(*np.shape(points)[:-1], 2)


def fitted(translation: Any, rotation: Any) -> SimpleNamespace:
    """The result of a perfect fit of the mean face at a place in space."""
    turned = MEAN @ matrix(rotation).T
    centre = look([translation])[0]
    return SimpleNamespace(
        landmarks=jnp.asarray(look(turned + translation)),
        landmarks3d=jnp.asarray(turned),
        pose=Pose(CAMERA.fx / translation[2], jnp.asarray(matrix(rotation)), jnp.asarray(centre)),
        shape=jnp.zeros(PDM.n_modes),
        parts={},
    )


def with_eyes(face: SimpleNamespace, target: Any) -> tuple[SimpleNamespace, np.ndarray, np.ndarray]:
    """The face with eyes turned to `target` (a direction, or a point in space for "at"), the
    centres of its eyeballs and its irises, `(2, 28, 3)`."""
    space = np.asarray(jclnf.space.landmarks_in_space(face, CAMERA))
    rotation = np.asarray(face.pose.matrix)
    centres, irises = [], []
    for name, corners in zip(EYES, CORNERS, strict=True):
        centre = space[list(corners)].mean(0) + rotation @ CENTRE
        direction = np.subtract(target, centre) if target == (0.0, 0.0, 0.0) else np.array(target)
        direction = direction / np.linalg.norm(direction)
        across = np.cross(direction, [0.0, 1.0, 0.0])
        across /= np.linalg.norm(across)
        down = np.cross(direction, across)
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        # The first eight are the iris, whose mean is the pupil.
        turn[:8] = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        iris = (
            centre
            + RADIUS * direction
            + 5.9 * (np.cos(turn)[:, None] * across + np.sin(turn)[:, None] * down)
        )
        depth = np.zeros((28, 3), np.float32)
        depth[:, 2] = iris[:, 2] - float(CAMERA.fx / face.pose.scale)
        face.parts[name] = SimpleNamespace(
            landmarks=jnp.asarray(look(iris)), landmarks3d=jnp.asarray(depth), pose=face.pose
        )
        centres.append(centre)
        irises.append(iris)
    return face, np.array(centres), np.array(irises)


def wire(axes: Any, points: np.ndarray, **style: Any) -> None:
    for run in RUNS:
        axes.plot(*points[run].T, **({"color": FACE, "lw": 1.2} | style))


def arrow(axes: Any, start: Any, end: Any, colour: str, width: float = 1.8) -> None:
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": 0},
        zorder=5,
    )


def view(axes: Any, title: str, left: float, right: float, top: float, bottom: float) -> None:
    """Axes as images have them: y down."""
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def image_frame(axes: Any) -> None:
    view(axes, "Image: pixels", -70, 700, -75, 505)
    axes.add_patch(plt.Rectangle((-0.5, -0.5), WIDTH, HEIGHT, fill=False, color="#90a4ae"))
    wire(axes, look(MEAN + [0, 0, 480]))
    arrow(axes, (0, 0), (190, 0), COLOURS["x"])
    arrow(axes, (0, 0), (0, 190), COLOURS["y"])
    axes.text(200, 8, "x", color=COLOURS["x"], va="top")
    axes.text(12, 205, "y", color=COLOURS["y"], va="center")
    axes.text(-40, -18, "(0, 0): centre of the first pixel", fontsize=8, va="bottom")
    axes.plot(320, 240, "+", color="k", ms=9)
    axes.text(628, 470, "+ centre (cx, cy)", fontsize=8, ha="right", va="bottom")
    axes.text(15, 290, "person's\nright side", fontsize=8, va="top")
    axes.text(625, 290, "person's\nleft side", fontsize=8, va="top", ha="right")


def space(axes: Any) -> None:
    """Camera and head, from a place above, beside and behind the camera."""
    observer, aim = np.array([880.0, -520.0, -420.0]), np.array([30.0, 0.0, 330.0])
    forward = (aim - observer) / np.linalg.norm(aim - observer)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)

    def seen(points: Any) -> np.ndarray:
        """Where the observer sees points; y down as in an image."""
        x, y, z = np.stack([right, down, forward]) @ (np.reshape(points, (-1, 3)) - observer).T
        return 1000 * np.stack([x / z, y / z], -1)

    place = np.array([120.0, -60.0, 650.0])
    head = MEAN + place
    wire(axes, seen(head))
    plane = 260.0
    corners = np.array([(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT), (0, 0)], float)
    frame = np.concatenate([(corners - [320, 240]) / 500, np.ones((5, 1))], -1) * plane
    axes.plot(*seen(frame).T, color="#90a4ae", lw=1)
    for corner in frame[:4]:
        axes.plot(*seen([np.zeros(3), corner]).T, color="#cfd8dc", lw=0.8, zorder=0)
    wire(axes, seen(head / head[:, 2:] * plane), lw=0.7)
    for k in (8, 27):
        axes.plot(*seen([np.zeros(3), head[k]]).T, color="#90a4ae", lw=0.7, ls=":")
    for axis, unit in zip("xyz", np.eye(3), strict=True):
        for origin, length in ((np.zeros(3), 170.0), (place, 110.0)):
            start, end = seen([origin, origin + length * unit])
            arrow(axes, start, end, COLOURS[axis])
            axes.text(
                *(end + 0.12 * (end - start)), axis, color=COLOURS[axis], ha="center", va="center"
            )
    arrow(axes, *seen([head[TIP], head[TIP] - [0, 0, 80]]), NOSE)
    origin, at = seen([np.zeros(3), place])
    axes.plot(*origin, "ko", ms=5)
    axes.text(*(origin + [-20, -10]), "camera: origin of\npose_T, X, Y, Z", fontsize=8, ha="right")
    axes.text(*(seen(frame[:1])[0] + [12, -15]), "image", color="#607d8b", fontsize=8)
    axes.plot(*at, "ko", ms=4)
    axes.text(
        *(at + [-110, 170]), "head: the shape model's\naxes and origin (at pose_T)", fontsize=8
    )
    where = np.asarray(jclnf.space.head_pose(fitted(place, (0.0, 0.0, 0.0)), CAMERA).translation)
    axes.set_title(
        "Space, seen from beside, above and behind the camera:\n"
        "millimetres; x right, y down, z into the scene",
        fontsize=10,
    )
    axes.set_xlabel(
        f"pose_T = ({where[0]:+.0f}, {where[1]:+.0f}, {where[2]:+.0f}): right of and above the "
        "axis;\nrotation 0: the head's axes are parallel to the camera's",
        fontsize=9,
    )
    everything = np.concatenate([seen(head), seen(frame), seen(np.diag([170.0, 170.0, 170.0]))])
    (left, top), (right_most, bottom) = everything.min(0), everything.max(0)
    axes.set(
        xlim=(left - 250, right_most + 150),
        ylim=(bottom + 40, top - 40),
        aspect="equal",
        xticks=[],
        yticks=[],
    )


def from_above(axes: Any) -> None:
    place = np.array([260.0, 0.0, 520.0])
    rotation = (0.0, float(np.arctan2(place[0], place[2])), 0.0)
    face = fitted(place, rotation)
    pose = jclnf.space.head_pose(face, CAMERA)
    points = np.asarray(face.landmarks3d) + place
    for run in RUNS[:1] + RUNS[3:4]:
        axes.plot(points[run, 0], points[run, 2], color=FACE, lw=1.2)
    axes.plot(0, 0, "ko", ms=5)
    arrow(axes, (0, 0), (150, 0), COLOURS["x"])
    arrow(axes, (0, 0), (0, 150), COLOURS["z"])
    axes.text(160, 0, "x", color=COLOURS["x"], va="center")
    axes.text(0, 160, "z", color=COLOURS["z"], ha="center")
    axes.text(-10, -45, "camera", fontsize=8, ha="center")
    axes.plot([0, place[0]], [0, place[2]], color="#90a4ae", lw=0.8, ls=":")
    tip = points[TIP]
    end = tip + 110 * matrix(rotation) @ [0.0, 0.0, -1.0]
    arrow(axes, tip[[0, 2]], end[[0, 2]], NOSE)
    axes.set(xlim=(-130, 420), ylim=(-80, 640), aspect="equal", xticks=[], yticks=[])
    axes.set_title("From above: a head beside the axis\nthat faces the camera", fontsize=10)
    own, towards = (np.rad2deg(np.asarray(p.rotation)) for p in (pose, pose.towards_camera()))
    axes.set_xlabel(f"{degrees(own)}\ntowards_camera(): {degrees(towards)}", fontsize=9)


def degrees(angles: Any) -> str:
    """Pitch, yaw and roll as text."""
    return "rx, ry, rz = " + ", ".join(f"{v:+.0f}°" if abs(v) > 0.5 else "0°" for v in angles)


def rotation(axes: Any, title: str, turn: Any) -> None:
    place = (0.0, 0.0, 500.0)
    face = fitted(place, turn)
    view(axes, title, 160, 480, 110, 375)
    wire(axes, np.asarray(face.landmarks))
    tip = np.asarray(face.landmarks3d)[TIP] + place
    for axis, unit in zip("xyz", np.eye(3), strict=True):
        start, end = look([place, place + 85 * matrix(turn) @ unit])
        if np.linalg.norm(end - start) > 12:
            arrow(axes, start, end, COLOURS[axis], 1.3)
            axes.text(
                *(end + 0.14 * (end - start)), axis, color=COLOURS[axis], ha="center", va="center"
            )
    start, end = look([tip, tip + 90 * matrix(turn) @ [0.0, 0.0, -1.0]])
    if np.linalg.norm(end - start) > 5:
        arrow(axes, start, end, NOSE, 2.2)
    else:
        axes.plot(*start, "o", color=NOSE, ms=6)
    found = np.rad2deg(np.asarray(jclnf.space.head_pose(face, CAMERA).rotation))
    axes.set_xlabel(degrees(found), fontsize=9)


def eyes(axes: Any, title: str, turn: Any, target: Any) -> None:
    middle = matrix(turn) @ MEAN[[i for pair in CORNERS for i in pair]].mean(0)
    face, centres, irises = with_eyes(fitted([0.0, 0.0, 500.0] - middle, turn), target)
    view(axes, title, 230, 410, 185, 295)
    wire(axes, np.asarray(face.landmarks))
    found = jclnf.space.gaze(face, CAMERA, jclnf.space.head_pose(face, CAMERA))
    around = np.linspace(0, 2 * np.pi, 60)
    ball = RADIUS * np.stack([np.cos(around), np.sin(around), 0 * around], -1)
    for centre, iris, direction in zip(centres, irises, np.asarray(found.directions), strict=True):
        axes.plot(*look(centre + ball).T, color="#b0bec5", lw=0.9)
        axes.fill(*look(iris[:8]).T, color="#4fc3f7", alpha=0.6)
        start, end = look([centre, centre + 60 * direction])
        if np.linalg.norm(end - start) > 8:
            arrow(axes, start, end, NOSE)
        else:
            axes.plot(*look(iris[:8]).mean(0), "o", color=NOSE, ms=4)
    x, y = np.rad2deg(np.asarray(found.angles))
    mean = np.asarray(found.directions).mean(0) + 0.0
    text = ", ".join(f"{v:+.2f}" if abs(v) > 0.005 else "0" for v in mean)
    angle = [f"{v:+.0f}°" if abs(v) > 0.5 else "0°" for v in (x, y)]
    axes.set_xlabel(
        f"gaze_angle_x {angle[0]}, gaze_angle_y {angle[1]}\nmean of both eyes ({text})", fontsize=9
    )


def main() -> None:
    command_line(__doc__).parse_args()
    figure = plt.figure(figsize=(14, 12))
    grid = figure.add_gridspec(3, 4, height_ratios=(1.2, 1, 0.8), hspace=0.34, wspace=0.14)
    image_frame(figure.add_subplot(grid[0, 0]))
    space(figure.add_subplot(grid[0, 1:3]))
    from_above(figure.add_subplot(grid[0, 3]))
    turned = float(np.deg2rad(25))
    for k, title in enumerate(
        (
            "Rotation 0: faces the camera",
            "Pitch rx > 0: down",
            "Yaw ry > 0: to the left of the\npicture, the person's own right",
            "Roll rz > 0: clockwise in the image",
        )
    ):
        turn = np.zeros(3)
        turn[k - 1 : k] = turned if k else 0.0
        rotation(figure.add_subplot(grid[1, k]), title, turn)
    a = float(np.tan(np.deg2rad(20)))
    for k, (title, turn, target) in enumerate(
        (
            ("Gaze straight ahead", (0.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
            (
                "gaze_angle_x > 0: to the right of\nthe image, the person's own left",
                (0.0, 0.0, 0.0),
                (a, 0.0, -1.0),
            ),
            ("gaze_angle_y > 0: down", (0.0, 0.0, 0.0), (0.0, a, -1.0)),
            (
                "Head turned by ry > 0, eyes on the\ncamera: gaze is of the camera's frame",
                (0.0, turned, 0.0),
                (0.0, 0.0, 0.0),
            ),
        )
    ):
        eyes(figure.add_subplot(grid[2, k]), title, turn, target)
    figure.text(
        0.5,
        0.045,
        "Rows 2 and 3 are what the camera sees. Orange: where nose or eyes point, a dot if at the "
        "camera.\nNumbers are measured by jclnf.space.head_pose and .gaze from these views.",
        ha="center",
        fontsize=9,
    )
    data = io.BytesIO()
    figure.savefig(data, dpi=95, bbox_inches="tight", pad_inches=0.1)
    # Few colours: a file a third as large.
    Image.open(data).convert("RGB").quantize(96).save(HERE / "frames.png", optimize=True)
    print(HERE / "frames.png", (HERE / "frames.png").stat().st_size)


if __name__ == "__main__":
    main()
