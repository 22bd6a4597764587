"""What tables say of fitted faces, whatever kind of file they are."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jclnf.fitting import FitStatus

NO_FACE = "no_face"
"""The status of an image without a face."""


def face_columns(n_landmarks: int, n_modes: int, units: Sequence[str] = ()) -> list[str]:
    """Return the names of the columns for a model of `n_landmarks` and `n_modes`, and for action
    units."""
    return [
        *("image", "face", "status", "likelihood", "confidence", "success"),
        *("box_x", "box_y", "box_w", "box_h"),
        *("scale", "weak_pitch", "weak_yaw", "weak_roll", "tx", "ty"),
        *(f"x_{i}" for i in range(n_landmarks)),
        *(f"y_{i}" for i in range(n_landmarks)),
        *(f"p_{i}" for i in range(n_modes)),
        *units,
    ]


def face_values(image: str, face: int, box: Any, result: Any, units: Any = ()) -> list[Any]:
    """Return what is known of a face, in the order of `face_columns`; NaN where nothing is.

    Args:
        image: the image's name.
        face: the face's number in the image.
        box: x, y, w, h of the start box in pixels of the image.
        result: its `FitResult` in the frame of the image (see `FitResult.shifted`).
        units: its action units.
    """
    pose, confidence = result.pose, result.confidence
    landmarks = np.asarray(result.landmarks).T.reshape(-1)
    parts = (pose.scale, pose.rotation, pose.translation, landmarks, result.shape, units)
    numbers = np.concatenate([np.reshape(np.asarray(part, float), -1) for part in parts])
    if not result.success:  # then they are not the face's
        numbers = numbers * np.nan
    return [
        image,
        face,
        FitStatus(int(result.status)).name.lower(),
        float(result.likelihood),
        math.nan if confidence is None else float(confidence),
        int(result.success),
        *map(float, box),
        *numbers.tolist(),
    ]
