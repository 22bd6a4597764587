"""How far fitted landmarks lie from annotated ones: normalised errors and what sums them up.

All errors are in % of a size of the face, taken from its annotation. A face that was not fitted has
NaN landmarks, and NaN as its error; it counts as a failure at every limit, adds nothing to an area
under the curve, and stands behind all others in medians and percentiles. Only a mean cannot count
it: that is over the fitted faces, so read it together with their number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

GROUPS_68: Mapping[str, np.ndarray] = {
    "jaw": np.arange(0, 17),
    "brows": np.arange(17, 27),
    "nose": np.arange(27, 36),
    "eyes": np.arange(36, 48),
    "mouth": np.arange(48, 68),
}
"""Landmarks of the 68-point (iBUG) scheme by part of the face."""

INNER = np.arange(17, 68)
"""The 51 landmarks of that scheme that are not on the jaw."""

OUTER_EYES = (36, 45)
"""The outer corners of the eyes in that scheme."""

MEASURES: Mapping[str, str] = {
    "all_eye": "all 68, eye distance",
    "inner_eye": "inner 51, eye distance",
    "all_box": "all, box size",
    "inner_box": "inner 51, box size",
    "all_eye_corrected": "all 68, eye distance, offsets removed",
    "inner_eye_corrected": "inner 51, eye distance, offsets removed",
}
"""The error measures of a face, in words: the mean over which landmarks, in % of what."""

YAW_EDGES = (0, 15, 30, 45, 60)
"""Lower ends, in degrees, of the ranges of |yaw| that faces are counted in."""


def point_errors(predicted: Any, truth: Any) -> np.ndarray:
    """Distance of each landmark from its annotation, `(b, n)` pixels.

    Args:
        predicted: `(b, n, 2)` pixels; NaN where a face was not fitted.
        truth: `(b, n, 2)` pixels.

    Raises:
        ValueError: the shapes are others, or differ.
    """
    found, wanted = np.asarray(predicted, np.float64), _faces(truth)
    if found.shape != wanted.shape:
        raise ValueError(f"predicted landmarks of shape {found.shape}, annotated {wanted.shape}")
    return np.linalg.norm(found - wanted, axis=-1)


def outer_eye_distance(truth: Any) -> np.ndarray:
    """Distance between the outer corners of the eyes, `(b,)` pixels, of `(b, 68, 2)` landmarks."""
    points = _faces(truth)
    if points.shape[1] != 68:
        raise ValueError(f"the eyes are known of 68 landmarks, not of {points.shape[1]}")
    left, right = OUTER_EYES
    return np.linalg.norm(points[:, left] - points[:, right], axis=-1)


def box_size(truth: Any) -> np.ndarray:
    """`sqrt(w * h)` of the extent of the landmarks `(b, n, 2)`, `(b,)` pixels."""
    return np.sqrt(np.prod(np.ptp(_faces(truth), axis=1), axis=-1))


def nme(predicted: Any, truth: Any, size: Any, landmarks: Any = slice(None)) -> np.ndarray:
    """Normalised mean error of each face, `(b,)`: the mean of its point errors in % of its size.

    Args:
        predicted, truth: as for `point_errors`.
        size: `(b,)` pixels, as `outer_eye_distance` or `box_size` give it.
        landmarks: the indices of those to take the mean over; all by default.
    """
    errors = point_errors(predicted, truth)
    return 100 * errors[:, landmarks].mean(axis=1) / _sizes(size, len(errors))


def cumulative_error_curve(errors: Any, limits: Any) -> np.ndarray:
    """The part of all faces whose error is at most each limit, `(k,)` in 0-1.

    Args:
        errors: `(b,)`, NaN for faces that were not fitted.
        limits: `(k,)`.
    """
    ordered = np.sort(_all(errors))
    return np.searchsorted(ordered, np.asarray(limits), side="right") / len(ordered)


def area_under_curve(errors: Any, limit: float) -> float:
    """The mean height of the cumulative error curve from 0 to `limit`, 0-1; exact, not sampled."""
    return float(np.clip(1 - _all(errors) / limit, 0, None).mean())


def failure_rate(errors: Any, limit: float) -> float:
    """The part of all faces whose error is over `limit`, or that were not fitted, 0-1."""
    return float(np.mean(_all(errors) > limit))


def remove_offsets(predicted: Any, truth: Any, size: Any = None) -> np.ndarray:
    """The predicted landmarks without what a method's points are off by on every face.

    Each method has its own idea of where, say, the jaw ends. Per landmark, the median over the
    fitted faces of the offset from the annotation, in x and in y and in units of `size`, is taken
    away: what is left is scatter. The medians come from the same faces, so this is for comparing
    methods on many faces, not for saying how good one is.

    Args:
        predicted, truth: as for `point_errors`.
        size: `(b,)` pixels; the outer eye distance if not given.
    """
    point_errors(predicted, truth)
    found, wanted = np.asarray(predicted, np.float64), _faces(truth)
    unit = outer_eye_distance(wanted) if size is None else size
    unit = _sizes(unit, len(wanted))[:, None, None]
    fitted = _fitted(found)
    if not fitted.any():
        return found.copy()
    offset = np.median((found - wanted)[fitted] / unit[fitted], axis=0)
    return found - unit * offset


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of errors; see the module on how faces that were not fitted count."""

    faces: int
    not_fitted: int
    """How many of the faces were not fitted."""
    mean: float
    """Over the fitted faces, in %; NaN if there are none."""
    median: float
    """Over all faces, in %; infinite if half of them were not fitted."""
    p90: float
    """The 90th percentile over all faces, in %; infinite if a tenth of them was not fitted."""
    over_8: float
    """Part of all faces with an error over 8 %, 0-1."""
    over_10: float
    auc_8: float
    """Area under the cumulative error curve up to 8 %, 0-1."""
    auc_10: float

    @staticmethod
    def of(errors: Any) -> "Statistics":
        """Of `(b,)` errors in %, `b` > 0."""
        everyone = _all(errors)
        fitted = everyone[np.isfinite(everyone)]
        return Statistics(
            faces=len(everyone),
            not_fitted=len(everyone) - len(fitted),
            mean=float(fitted.mean()) if len(fitted) else float("nan"),
            median=_percentile(everyone, 50),
            p90=_percentile(everyone, 90),
            over_8=failure_rate(everyone, 8.0),
            over_10=failure_rate(everyone, 10.0),
            auc_8=area_under_curve(everyone, 8.0),
            auc_10=area_under_curve(everyone, 10.0),
        )


@dataclass(frozen=True)
class Summary:
    """The errors of a method on a set of faces.

    Of other schemes than the 68-point one there are neither groups nor any measure but "all_box".
    """

    measures: dict[str, Statistics]
    """By the names in `MEASURES`."""
    groups: dict[str, Statistics] = field(default_factory=dict)
    """By part of the face, as in `GROUPS_68`, in % of the eye distance."""
    yaw: dict[str, Statistics] = field(default_factory=dict)
    """By |yaw| in degrees, ranges as `yaw_range` names them, those with faces only: "all_eye", or
    "all_box" where there are no eyes."""


def face_errors(predicted: Any, truth: Any) -> dict[str, np.ndarray]:
    """Each face's errors by the names in `MEASURES`, `(b,)` in %.

    Args:
        predicted: as for `point_errors`; a face with any NaN was not fitted.
        truth: as for `point_errors`.
    """
    found, wanted = _whole_faces(predicted), _faces(truth)
    box = box_size(wanted)
    if wanted.shape[1] != 68:
        return {"all_box": nme(found, wanted, box)}
    eyes, corrected = outer_eye_distance(wanted), remove_offsets(found, wanted)
    return {
        "all_eye": nme(found, wanted, eyes),
        "inner_eye": nme(found, wanted, eyes, INNER),
        "all_box": nme(found, wanted, box),
        "inner_box": nme(found, wanted, box, INNER),
        "all_eye_corrected": nme(corrected, wanted, eyes),
        "inner_eye_corrected": nme(corrected, wanted, eyes, INNER),
    }


def summarise(predicted: Any, truth: Any, yaw: Any = None) -> Summary:
    """Sum up the errors of a method.

    Args:
        predicted, truth: as for `face_errors`.
        yaw: `(b,)` radians, the heads' turn to the side, NaN where not known; without it nothing
            is grouped by yaw.
    """
    errors = face_errors(predicted, truth)
    main = next(iter(errors.values()))
    groups, turned = {}, {}
    if np.shape(truth)[1] == 68:
        found, eyes = _whole_faces(predicted), outer_eye_distance(truth)
        groups = {
            name: Statistics.of(nme(found, truth, eyes, index)) for name, index in GROUPS_68.items()
        }
    if yaw is not None:
        ranges = np.array([yaw_range(angle) for angle in np.asarray(yaw, np.float64)])
        if len(ranges) != len(main):
            raise ValueError(f"{len(ranges)} angles for {len(main)} faces")
        named = [yaw_range(np.deg2rad(edge + 1)) for edge in YAW_EDGES] + [yaw_range(np.nan)]
        turned = {
            name: Statistics.of(main[ranges == name]) for name in named if np.any(ranges == name)
        }
    return Summary({name: Statistics.of(e) for name, e in errors.items()}, groups, turned)


def yaw_range(angle: float) -> str:
    """The range that a yaw in radians falls into by its size in degrees: "0-15", ..., "60+"."""
    if not np.isfinite(angle):
        return "unknown"
    degrees = abs(np.rad2deg(angle))
    last = int(np.searchsorted(YAW_EDGES, degrees, side="right")) - 1
    if last + 1 == len(YAW_EDGES):
        return f"{YAW_EDGES[last]}+"
    return f"{YAW_EDGES[last]}-{YAW_EDGES[last + 1]}"


def _faces(landmarks: Any) -> np.ndarray:
    points = np.asarray(landmarks, np.float64)
    if points.ndim != 3 or points.shape[2] != 2 or 0 in points.shape:
        raise ValueError(f"landmarks of faces are of shape (b, n, 2), not {points.shape}")
    return points


def _fitted(landmarks: np.ndarray) -> np.ndarray:
    return np.isfinite(landmarks).all(axis=(1, 2))


def _whole_faces(landmarks: Any) -> np.ndarray:
    """The landmarks with NaN throughout for a face that has any."""
    points = _faces(landmarks)
    return np.where(_fitted(points)[:, None, None], points, np.nan)


def _sizes(size: Any, faces: int) -> np.ndarray:
    array = np.asarray(size, np.float64)
    if array.shape != (faces,) or not np.all(array > 0):
        raise ValueError(f"sizes are {faces} positive numbers: an annotated face has no extent?")
    return array


def _all(errors: Any) -> np.ndarray:
    """Errors with infinity for faces that were not fitted."""
    array = np.asarray(errors, np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"errors are of shape (b,) with b > 0, not {array.shape}")
    return np.where(np.isfinite(array), array, np.inf)


def _percentile(errors: np.ndarray, percent: int) -> float:
    """As `np.percentile`, which gives NaN beside infinities."""
    low, high = (
        float(np.percentile(errors, percent, method=method)) for method in ("lower", "higher")
    )
    return high if low == high or np.isinf(high) else float(np.percentile(errors, percent))
