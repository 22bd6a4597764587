"""The table that OpenFace 2.2's programs write: the same columns in the same order, as text.

`frame, face_id, timestamp, confidence, success` for videos, `face, confidence` for images; then
gaze and the eyes' landmarks (if there are), head pose (`pose_T` in millimetres, `pose_R` in
radians), landmarks in pixels and in space, and the parameters of the fit. `p_0 ...` are parameters
of the model's own shape modes: comparable between files of one model only. Last come action units,
where there are: intensities (`AU01_r`, 0 to 5) and presences (`AU01_c`, 0 or 1). Videos may have a
column more, `cut`, which OpenFace has not.

What was not measured is an empty cell, as pandas and pyarrow read a missing value, or 0 where
the table is to be OpenFace's in that as well.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from jclnf.fitting import map_faces
from jclnf.params import on_host
from jclnf.space import Camera, Gaze, HeadPose, gaze, has_gaze, head_pose, landmarks_in_space

VIDEO = (
    ("frame", "%d"),
    ("face_id", "%d"),
    ("timestamp", "%.3f"),
    ("confidence", "%.2f"),
    ("success", "%d"),
)
IMAGE = (("face", "%d"), ("confidence", "%.3f"))
CUT = ("cut", "%d")
FULL = "%.9g"
"""Holds every single-precision number exactly."""


class FaceMeasurements(eqx.Module):
    """The numbers of a fitted face that the table has, but for who and when."""

    landmarks: Float[Array, "n 2"]
    space: Float[Array, "n 3"]
    """The landmarks in the camera's frame, millimetres."""
    head: HeadPose
    scale: Float[Array, ""]
    rotation: Float[Array, "3"]
    translation: Float[Array, "2"]
    shape: Float[Array, " m"]
    gaze: Gaze | None
    """None if the eyes were not fitted."""


def measure_face(result: Any, camera: Camera) -> FaceMeasurements:
    """Head pose, landmarks in space and gaze of a fitted face; pure."""
    head = head_pose(result, camera)
    return FaceMeasurements(
        landmarks=result.landmarks,
        space=landmarks_in_space(result, camera),
        head=head,
        scale=result.pose.scale,
        rotation=result.pose.rotation,
        translation=result.pose.translation,
        shape=result.shape,
        gaze=gaze(result, camera, head) if has_gaze(result) else None,
    )


@jax.jit
def _measure_batch(results: Any, camera: Camera) -> FaceMeasurements:
    return map_faces(lambda result: measure_face(result, camera), results)


def measure_faces(results: list[Any], camera: Camera, *, batch: int = 32) -> list[FaceMeasurements]:
    """Measure several fits, in batches, as `measure_face` does one; NumPy arrays.

    A face's numbers do not depend on how many others there are: batches are filled up to one size.

    Args:
        results: fits of the same model and settings.
        camera: the camera.
        batch: faces computed at a time.
    """
    measured: list[FaceMeasurements] = []
    for first in range(0, len(results), batch):
        part = [_fit_fields(result) for result in results[first : first + batch]]
        filled = part + part[-1:] * (batch - len(part))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
        together = on_host(_measure_batch(stacked, camera))
        measured += [jax.tree.map(lambda a, i=i: a[i], together) for i in range(len(part))]
    return measured


class _FitFields(eqx.Module):
    """The fields of a fit that are measured."""

    landmarks: Any
    landmarks3d: Any
    pose: Any
    shape: Any
    parts: Any


def _fit_fields(result: Any) -> _FitFields:
    eyes = dict(result.parts) if has_gaze(result) else {}
    return _FitFields(result.landmarks, result.landmarks3d, result.pose, result.shape, eyes)


class OpenFaceTable:
    """Header and rows of a table, as text; the file is somebody else's.

    Args:
        n_landmarks: of the model.
        n_modes: of the model.
        video: of a video's frames, or of an image's faces.
        cut: a column `cut` after `success`: 1 in the first frame after a cut, else 0.
        gaze: whether there are columns of gaze and eyes.
        action_units: names of the columns of action units.
        full_precision: all digits of the numbers instead of OpenFace's decimals.
        zeros: what was not measured is 0, as OpenFace has it, instead of an empty cell.
        spaces: a space after each comma, so that all names but the first begin with one, as
            OpenFace 2.2.0 writes them; pandas then does not find `success`.
    """

    def __init__(
        self,
        n_landmarks: int,
        n_modes: int,
        *,
        video: bool,
        gaze: bool,
        action_units: Sequence[str] = (),
        cut: bool = False,
        full_precision: bool = False,
        zeros: bool = False,
        spaces: bool = False,
    ) -> None:
        first = (*(VIDEO if video else IMAGE), *([CUT] if cut else []))
        columns = [*first, *_columns(n_landmarks, n_modes, gaze)]
        # OpenFace's program for videos writes them a second time, with other decimals.
        whole = "%.2f" if video else "%.1f"
        columns += [(name, whole if name.endswith("_c") else "%.2f") for name in action_units]
        # Frames and faces are counted, and time has no more digits than its unit.
        kept = {"frame", "face_id", "face", "success", "cut"}
        if full_precision:
            columns = [(name, fmt if name in kept else FULL) for name, fmt in columns]
        self.columns = [name for name, _ in columns]
        self.separator = ", " if spaces else ","
        self.header = self.separator.join(self.columns) + "\n"
        self._formats = [fmt for _, fmt in columns]
        self._row = self.separator.join(self._formats) + "\n"
        self._missing = 0.0 if zeros else math.nan
        self.first = len(first)
        """How many columns come before the measurements."""
        self._gaze = gaze
        self.units = len(action_units)
        """How many columns there are of action units, the last ones."""

    def row(
        self,
        first: tuple[int | float | None, ...],
        face: FaceMeasurements | None,
        units: np.ndarray | None = None,
    ) -> str:
        """A face as a line of the table.

        Args:
            first: the columns before those of the face: frame, face_id, timestamp, confidence and
                success (0 or 1), and cut where there is such a column; or face and confidence.
                None is what there is not.
            face: its numbers; None if nothing was measured.
            units: those of its action units; None if nothing was measured.
        """
        if face is None:
            numbers = [self._missing] * (len(self.columns) - self.first - self.units)
        else:
            numbers = self.values(face)
        numbers += [self._missing] * self.units if units is None else units.tolist()
        return self.line([*(self._missing if one is None else one for one in first), *numbers])

    def line(self, values: list[int | float]) -> str:
        """A line of the table, by the formats of its columns; what is not finite is empty."""
        if all(map(math.isfinite, values)):
            return self._row % tuple(values)
        pairs = zip(self._formats, values, strict=True)
        return self.separator.join(f % v if math.isfinite(v) else "" for f, v in pairs) + "\n"

    def with_units(self, line: str, units: np.ndarray) -> str:
        """A line of the table with these action units in place of its own; where it has none it
        stays without."""
        cells = line.rstrip("\n").split(self.separator)
        pairs = zip(self._formats[-self.units :], units.tolist(), strict=True)
        if cells[-1]:
            cells[-self.units :] = [fmt % value for fmt, value in pairs]
        return self.separator.join(cells) + "\n"

    def values(self, face: FaceMeasurements) -> list[float]:
        """The numbers of a face, but for action units, in the order of their columns."""
        parts: list[Any] = []
        if self._gaze:
            eyes = face.gaze
            if eyes is None:
                parts.append(np.full(8 + 2 * 28 * 5, self._missing))
            else:
                by_axis = [eyes.landmarks.reshape(-1, 2).T, eyes.landmarks3d.reshape(-1, 3).T]
                parts += [eyes.directions, eyes.angles, *by_axis]
        parts += [face.head.translation, face.head.rotation, face.landmarks.T, face.space.T]
        parts += [face.scale, face.rotation, face.translation, face.shape]
        return np.concatenate([np.ravel(part) for part in parts]).tolist()


def _columns(n: int, m: int, gaze: bool) -> list[tuple[str, str]]:
    """Names and formats of the columns of a face."""
    names: list[tuple[str, str]] = []
    if gaze:
        names += [(f"gaze_{eye}_{axis}", "%.6f") for eye in (0, 1) for axis in "xyz"]
        names += [(f"gaze_angle_{axis}", "%.3f") for axis in "xy"]
        names += [(f"eye_lmk_{axis}_{i}", "%.1f") for axis in "xyXYZ" for i in range(56)]
    names += [(f"pose_T{axis}", "%.1f") for axis in "xyz"]
    names += [(f"pose_R{axis}", "%.3f") for axis in "xyz"]
    names += [(f"{axis}_{i}", "%.1f") for axis in "xyXYZ" for i in range(n)]
    names += [(f"p_{name}", "%.3f") for name in ("scale", "rx", "ry", "rz", "tx", "ty")]
    return names + [(f"p_{i}", "%.3f") for i in range(m)]
