"""Where the landmarks of whole commands begin to differ from OpenFace's, and what two builds of
OpenFace itself differ by.

    python -m experiments.action_units.causes

Each frame is fitted from the recorded state of the one before: a stage that differs would show in
every frame. That is done again from a start that is moved by hardly anything, which shows what
rounding alone does.

There are two builds of OpenFace's own program, with other libraries of linear algebra: the one that
action units were recorded of, and the one that wrote the tables of `golden_csv`. Those have no
action units, and landmarks to 0.1 px; but together with the parameters, to 0.001, they tell
landmarks to some thousandths of a pixel, from which action units follow. How well they do, the
recorded build's own table shows. Needs the development data.
"""

from pathlib import Path

import cv2
import numpy as np

import jclnf
from experiments.action_units.commands import (
    CLIPS,
    PHOTOGRAPHS,
    PREDICTORS,
    RECORDED,
    colour_frames,
    of_clip,
    recorded_landmarks,
)
from experiments.action_units.tracing import judged
from experiments.common import OPENFACE, Row, command_line, model_file, pivot, write_results
from experiments.parity_video.__main__ import start_box
from jclnf.action_units import ActionUnits, describe_openface, load_action_units
from jclnf.detect import make_detector
from jclnf.geometry import PDM, tight_box
from tests.support.recordings import csv_rows

HERE = Path(__file__).resolve().parent / "causes"

MOVED = 3e-5
"""Pixels by which a start is moved: of positions in these images, one to four units in the last
place of single precision."""
FITS = 48
ROUNDED_LANDMARKS, ROUNDED_PARAMETERS = 0.1, 0.001
"""Of OpenFace's tables."""


def pose_and_shape(pdm: PDM, landmarks: np.ndarray, parameters: np.ndarray | None = None):
    """The state `(scale, matrix, translation, shape)` that has these landmarks: exactly, or, with
    a table's parameters `(6 + m,)`, the likeliest before both were rounded."""
    mean = np.asarray(pdm.mean, np.float64)
    modes = np.asarray(pdm.components, np.float64)
    scale, *angles, x, y = _start(mean, landmarks) if parameters is None else parameters[:6]
    matrix = _rotation(np.array(angles))
    translation = np.array([x, y])
    shape = np.zeros(modes.shape[2]) if parameters is None else parameters[6:].copy()
    given = None if parameters is None else parameters
    for _ in range(30):
        points = mean + modes @ shape
        axes = matrix[:2]
        residual = (landmarks - (scale * points @ axes.T + translation)).reshape(-1)
        turned = np.cross(np.eye(3)[None], points[:, None])
        columns = [
            (points @ axes.T)[..., None],
            scale * np.einsum("ac,nkc->nak", axes, turned),
            np.broadcast_to(np.eye(2), (len(points), 2, 2)),
            scale * np.einsum("ac,ncm->nam", axes, modes),
        ]
        jacobian = np.concatenate(columns, axis=2).reshape(len(residual), -1)
        if given is not None:
            # A turn of the matrix is one of Euler angles, as far as that matters here.
            now = np.concatenate([[scale], _angles(matrix), translation, shape])
            weight = ROUNDED_LANDMARKS / ROUNDED_PARAMETERS
            to_angles = np.eye(len(now))
            to_angles[1:4, 1:4] = _angles_by_turn(matrix)
            jacobian = np.concatenate([jacobian, weight * to_angles])
            residual = np.concatenate([residual, weight * (given - now)])
        step = np.linalg.lstsq(jacobian, residual, rcond=None)[0]
        scale, translation, shape = scale + step[0], translation + step[4:6], shape + step[6:]
        matrix = matrix @ _turn(step[1:4])
        if np.abs(step).max() < 1e-9:
            break
    return scale, matrix, translation, shape


def _start(mean: np.ndarray, landmarks: np.ndarray) -> list[float]:
    low, high = landmarks.min(0), landmarks.max(0)
    scale = np.mean((high - low) / np.ptp(mean[:, :2], axis=0))
    return [float(scale), 0.0, 0.0, 0.0, *((low + high) / 2)]


def _rotation(angles: np.ndarray) -> np.ndarray:
    (c1, c2, c3), (s1, s2, s3) = np.cos(angles), np.sin(angles)
    rx = np.array([[1, 0, 0], [0, c1, -s1], [0, s1, c1]])
    ry = np.array([[c2, 0, s2], [0, 1, 0], [-s2, 0, c2]])
    rz = np.array([[c3, -s3, 0], [s3, c3, 0], [0, 0, 1]])
    return rx @ ry @ rz


def _angles(matrix: np.ndarray) -> np.ndarray:
    return np.array(
        [
            np.arctan2(-matrix[1, 2], matrix[2, 2]),
            np.arcsin(matrix[0, 2]),
            np.arctan2(-matrix[0, 1], matrix[0, 0]),
        ]
    )


def _angles_by_turn(matrix: np.ndarray, by: float = 1e-6) -> np.ndarray:
    columns = [(_angles(matrix @ _turn(by * e)) - _angles(matrix)) / by for e in np.eye(3)]
    return np.stack(columns, axis=1)


def _turn(w: np.ndarray) -> np.ndarray:
    return cv2.Rodrigues(np.asarray(w, np.float64))[0]


def positions(pdm: PDM, state: tuple) -> np.ndarray:
    """The landmarks `(68, 2)` of a state."""
    scale, matrix, translation, shape = state
    points = np.asarray(pdm.mean, np.float64) + np.asarray(pdm.components, np.float64) @ shape
    return scale * points @ matrix[:2].T + translation


def written(pdm: PDM, path: Path) -> np.ndarray:
    """The landmarks `(f, 68, 2)` that a table of OpenFace's was rounded from."""
    rows = csv_rows(path)
    names = ["p_scale", "p_rx", "p_ry", "p_rz", "p_tx", "p_ty", *(f"p_{i}" for i in range(34))]
    found = []
    for row in rows:
        landmarks = np.array([[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)])
        parameters = np.array([float(row[name]) for name in names])
        found.append(positions(pdm, pose_and_shape(pdm, landmarks, parameters)))
    return np.array(found)


def from_recorded(
    model: jclnf.Model, greys: list[np.ndarray], landmarks: np.ndarray, moved: float = 0.0
) -> np.ndarray:
    """Landmarks of each frame but the first, fitted from those recorded of the frame before."""
    tracker = jclnf.Tracker(model, jclnf.TrackParams.openface(model), single=True)
    tracker.step(greys[0], np.asarray(tight_box(landmarks[0]), np.float64))
    found = []
    for before, grey in zip(landmarks[:-1], greys[1:], strict=True):
        scale, matrix, translation, shape = pose_and_shape(model.pdm, before.astype(np.float64))
        state = tracker.state()
        values = {
            "scale": scale, "matrix": matrix, "translation": translation + moved, "shape": shape,
            "boxes": np.asarray(tight_box(before), np.float64), "seen": True, "failures": 0,
        }  # fmt: skip
        state |= {name: np.array([value], state[name].dtype) for name, value in values.items()}
        tracker.restore(state)
        (face,) = tracker.step(grey)
        found.append(np.asarray(face.result.landmarks, np.float64))
    return np.array(found)


def apart(label: str, clip: str, one: np.ndarray, other: np.ndarray) -> list[Row]:
    """How far landmarks `(f, 68, 2)` are apart."""
    far = np.linalg.norm(one - other, axis=2)
    return [
        Row(f"{label}: landmarks apart, mean", clip, far.size, float(far.mean()), unit="px"),
        Row(f"{label}: worst landmark of a frame, median", clip, len(far),
            float(np.median(far.max(1))), unit="px"),
    ]  # fmt: skip


def of_command(clip: str, moved: float = 0.0) -> np.ndarray:
    """Landmarks of a whole clip, followed from OpenFace's box in the first frame."""
    model = jclnf.load_openface(model_file("general"), parts=True, validator=True)
    tracker = jclnf.Tracker(model, jclnf.TrackParams.openface(model), single=True)
    found = []
    for index, image in enumerate(colour_frames(clip)):
        box = start_box(f"{clip}.wmv") + np.float32(moved) if index == 0 else None
        (face,) = tracker.step(image, box)
        found.append(np.asarray(face.result.landmarks))
    return np.array(found)


def causes(units: ActionUnits, model: jclnf.Model, clip: str) -> list[Row]:
    """All rows of a clip."""
    images = list(colour_frames(clip))
    greys = [jclnf.tracking.grey_of(image) for image in images]
    theirs = recorded_landmarks(clip)
    exact = np.array([positions(model.pdm, pose_and_shape(model.pdm, one)) for one in theirs])
    alone = from_recorded(model, greys, theirs)
    again = from_recorded(model, greys, theirs, MOVED)
    rows = apart("recorded landmarks and the states made of them", clip, exact, theirs)
    rows += apart("a frame from the recorded state", clip, alone, theirs[1:])
    rows += apart(f"the same from {MOVED:g} px away, from it", clip, again, alone)
    ours, shaken = of_command(clip), of_command(clip, 1e-3)
    other = written(model.pdm, OPENFACE / "golden_csv" / f"{clip}.clnf_general.csv")
    itself = written(model.pdm, RECORDED / f"FeatureExtraction_dyn_{clip}.csv")
    expected = judged(units, images, theirs)
    for label, one, two in (
        ("the whole clip", ours, theirs),
        ("the whole clip from 0.001 px away, from it", shaken, ours),
        ("the other build of OpenFace", other, theirs),
        ("the whole clip, from the other build", ours, other),
        ("the recorded build's own table", itself, theirs),
    ):
        rows += apart(label, clip, one, two)
        against = expected if two is theirs else judged(units, images, two.astype(np.float32))
        found = judged(units, images, one.astype(np.float32))
        rows += of_clip(units, clip, found.final, against.final, f"{label}: ")
    return rows


def of_photograph(units: ActionUnits, model: jclnf.Model, index: int) -> list[Row]:
    """Rows of a photograph: fits from boxes that are moved by hardly anything, and the other build
    of OpenFace."""
    where = f"sample{PHOTOGRAPHS[index]}"
    image = cv2.imread(str(OPENFACE / "samples" / f"{where}.jpg"))
    grey = jclnf.tracking.grey_of(image)
    recorded = np.load(RECORDED / "stages_images.npz")["landmarks"][index].reshape(2, 68).T
    other = written(model.pdm, OPENFACE / "golden_csv" / f"{where}.clnf_general.csv")[0]
    box = make_detector(f"mtcnn:{OPENFACE / 'model'}")(image)[0]
    moved = np.random.default_rng(0).uniform(-MOVED, MOVED, (FITS, 4))
    moved[0] = 0
    settings = jclnf.FitParams.openface(model)
    fits = jclnf.fit_images(model, [grey] * FITS, box + moved, settings).landmarks
    ours, n = fits[0], len(units.intensities)
    nearest = min(fits, key=lambda fit: float(np.linalg.norm(fit - recorded, axis=1).mean()))

    def intensities(points: np.ndarray) -> np.ndarray:
        outputs = units.predict(describe_openface(units, image, points).descriptor)
        return units.shown(outputs)[:n]

    rows = []
    for label, one, two in (
        ("the fit", ours, recorded),
        (f"the nearest of {FITS} fits", nearest, recorded),
        ("those fits, the farthest from the first", max(fits, key=lambda f: _far(f, ours)), ours),
        ("the other build of OpenFace", other, recorded),
        ("the fit, from the other build", ours, other),
    ):
        far = np.linalg.norm(one - two, axis=1)
        most = np.abs(intensities(one) - intensities(two)).max()
        rows += [
            Row(f"{label}: landmarks apart, mean", where, 68, float(far.mean()), unit="px"),
            Row(f"{label}: landmarks apart, most", where, 68, float(far.max()), unit="px"),
            Row(f"{label}: intensity, largest difference", where, n, float(most)),
        ]
    return rows


def _far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other, axis=1).mean())


def main() -> None:
    """Measure, and write the results."""
    command_line(str(__doc__)).parse_args()
    jclnf.enable_compilation_cache()
    units = load_action_units(PREDICTORS)
    model = jclnf.load_openface(model_file("general"), parts=True, validator=True)
    rows = [row for clip in CLIPS for row in causes(units, model, clip)]
    static = load_action_units(PREDICTORS, static=True)
    of_photographs = [
        row for i in range(len(PHOTOGRAPHS)) for row in of_photograph(static, model, i)
    ]
    body = "\n\n".join(
        [
            pivot(rows),
            f"Photographs; {FITS} fits from boxes that are moved by at most {MOVED:g} px, about as "
            "much as single precision leaves open:",
            pivot(of_photographs),
        ]
    )
    title = "Action units: where differences begin, and what two builds of OpenFace differ by"
    write_results(HERE, title, body, {"rows": rows, "photographs": of_photographs})


if __name__ == "__main__":
    main()
