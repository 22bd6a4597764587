"""Boxes that mean the same face: overlap, and the assignment of detections to known faces."""

import numpy as np

SAME_FACE = 0.5
"""Intersection over union from which two boxes are one face."""


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area common to two boxes over that of both together, 0 to 1 (intersection over union)."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = float(np.prod(np.maximum(high - low, 0.0)))
    together = float(a[2] * a[3] + b[2] * b[3]) - common
    return common / together if together > 0 else 0.0


def nearness(a: np.ndarray, b: np.ndarray) -> float:
    """1 for boxes of one centre, 0 for centres that are the larger side of `a` apart or more."""
    distance = np.hypot(*(a[:2] + a[2:] / 2 - b[:2] - b[2:] / 2))
    return float(max(0.0, 1 - distance / max(a[2], a[3], 1e-6)))


def shows(box: np.ndarray, landmarks: np.ndarray) -> bool:
    """Whether at least half of the landmarks `(n, 2)` lie in the box."""
    inside = (landmarks >= box[:2]) & (landmarks <= box[:2] + box[2:])
    return bool(np.mean(inside.all(axis=1)) >= 0.5)


def assign(scores: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (row, column) of a table of scores whose sum is largest.

    Each row and each column is in at most one pair, and pairs of score 0 or less are left out.
    """
    from scipy.optimize import linear_sum_assignment

    scores = np.maximum(scores, 0.0)
    pairs = zip(*linear_sum_assignment(scores, maximize=True), strict=True)
    return [(int(row), int(column)) for row, column in pairs if scores[row, column] > 0]
