"""Viola and Jones's cascades of Haar features, as OpenCV has them, with boxes made to fit.

Viola, Jones, "Rapid object detection using a boosted cascade of simple features" (CVPR 2001). They
need no model file beyond those that OpenCV brings: one for faces that look at the camera, one for
faces turned to the side.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.detect._base import Native, check_image, check_min_face, smallest_face
from jclnf.errors import DetectorError, JclnfError

CASCADE = "haarcascade_frontalface_alt2.xml"
PROFILE_CASCADE = "haarcascade_profileface.xml"
"""Finds faces turned to the left of the image; those turned to the right in its mirror image."""

CORRECTION = (0.0502, 0.2252, 0.888, 0.8571)
"""(a, b, c, d): from the frontal cascade's box to the face outline by x + a w, y + b h, c w, d h.
Medians over annotated faces: experiments/haar_boxes."""

PROFILE_CORRECTION = (0.1025, 0.2898, 0.72, 0.6951)
"""The same for the profile cascade, of faces turned to the left."""

MIN_SCORE = 55.0
"""Sum of the last stage's weights under which a detection is dropped: under it are fewer than one
in a hundred of the faces, and a third of what is no face (experiments/haar_boxes)."""

PROFILE_MIN_SCORE = 1.0
"""The same for the profile cascade, whose scores go to about 5."""

_SIDE = 1024.0
"""Longer side in pixels to which a larger image is reduced, unless that would lose small faces."""
_LEAST = 18.0
"""Side in pixels of the smallest faces that the frontal cascade can find."""

# The second look: a small copy, which noise does not survive, upright and tilted either way. The
# cascade finds faces tilted up to about 15 degrees, these reach 40.
_SECOND_SIDE = 320.0
_SECOND_DEGREES = (0.0, -25.0, 25.0)
_SECOND_MIN_FACE = 1 / 8
# The profile cascade is three times as slow, both sides together.
_PROFILE_MIN_FACE = 1 / 12


_Found = tuple[np.ndarray, float]
"""A box, x, y, w, h, and its score."""


class HaarDetector:
    """Faces by OpenCV's frontal and profile cascades; satisfies `Detector`.

    An image is first searched upright for faces that look at the camera. Only if that finds
    nothing, a small copy of it is searched again for one large face: tilted to either side or in a
    noisy image, then turned to either side. The time goes with the number of faces of the smallest
    size that the image could hold, and hardly with its pixels. Several threads may call one
    detector: they take turns.
    """

    takes_min_face = True

    def __init__(self, *, min_face: float | None = None, profiles: str = "if none") -> None:
        """Load the cascades.

        Args:
            min_face: Side in pixels of the smallest face searched for; a 36th of the image's longer
                side if not given. Under 18 pixels none is found.
            profiles: When to look for faces turned to the side: "if none" other is found; "always",
                for images of several people, at five times the usual time; "never".

        Raises:
            JclnfError: this OpenCV has no cascade classifier, or its files are missing.
            DetectorError: `profiles` is none of these, or `min_face` is no size.
        """
        if profiles not in ("if none", "always", "never"):
            raise DetectorError(f"profiles is {profiles!r}; give 'if none', 'always' or 'never'")
        self.min_face = check_min_face(min_face)
        self.profiles = profiles
        self._frontal = Native(_load_cascade, CASCADE)
        self._profile = Native(_load_cascade, PROFILE_CASCADE)

    def __call__(self, image: np.ndarray, /, *, min_face: float | None = None) -> np.ndarray:
        """Return the boxes of all faces, the largest first; see `Detector`."""
        return self.detect(image, min_face)[0]

    def detect(
        self, grey: np.ndarray, min_face: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes, the largest first, and the cascade's score for each.

        Args:
            grey: `(h, w)` uint8, upright.
            min_face: in place of the detector's own.

        Returns:
            boxes: `(k, 4)` float64, x, y, w, h of the face outline in pixels of `grey`.
            scores: `(k,)` float64, from about `MIN_SCORE` or, of faces that only the profile
                cascade found, from `PROFILE_MIN_SCORE` to about 5; comparable between images.

        Raises:
            ImageError: `grey` is not of that shape and type.
        """
        grey = check_image(grey, colour=False)
        least = smallest_face(grey.shape, check_min_face(min_face), self.min_face)
        side = max(_SIDE, _LEAST * max(grey.shape) / least)
        found = self._look_ahead(grey, side, least, 0.0, (0.0,))
        if self.profiles == "always":
            found += self._look_aside(grey, side, least, 0.0)
        if not found:
            found = self._look_ahead(grey, _SECOND_SIDE, least, _SECOND_MIN_FACE, _SECOND_DEGREES)
        if not found and self.profiles == "if none":
            found = self._look_aside(grey, _SECOND_SIDE, least, _PROFILE_MIN_FACE)
        found = _best_of_overlapping(found)
        boxes = np.array([box for box, _ in found]).reshape(-1, 4)
        scores = np.array([score for _, score in found], np.float64)
        order = np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")
        return boxes[order], scores[order]

    def _look_ahead(
        self,
        grey: np.ndarray,
        side: float,
        min_face: float,
        min_part: float,
        degrees: tuple[float, ...],
    ) -> list[_Found]:
        """Search a copy no larger than `side` for faces to the front, at each of the tilts; of at
        least `min_face` pixels, and that part of the longer side."""
        small, factor = _reduced(grey, side)
        least = max(min_face * factor / CORRECTION[2], min_part * max(small.shape))
        found = []
        for angle in degrees:
            turned, back = _tilt(small, angle)
            for box, score in _search(self._frontal, turned, least):
                if score >= MIN_SCORE:
                    upright = _turn_box(correct(box), angle, back)
                    found.append((_enlarged(upright, factor), score))
        return found

    def _look_aside(
        self, grey: np.ndarray, side: float, min_face: float, min_part: float
    ) -> list[_Found]:
        """The same for faces turned to either side."""
        small, factor = _reduced(grey, side)
        least = max(min_face * factor / CORRECTION[2], min_part * max(small.shape))
        found = []
        for mirrored in (False, True):
            image = np.ascontiguousarray(small[:, ::-1]) if mirrored else small
            for box, score in _search(self._profile, image, least):
                if score >= PROFILE_MIN_SCORE:
                    x, y, w, h = correct(box, PROFILE_CORRECTION)
                    x = small.shape[1] - 1 - (x + w) if mirrored else x
                    found.append((_enlarged(np.array([x, y, w, h]), factor), score))
        return found


def correct(box: np.ndarray, rule: tuple[float, ...] | None = None) -> np.ndarray:
    """Return the face outline's box for a box of a cascade, both `(4,)` x, y, w, h; by the frontal
    cascade's rule unless another is given."""
    x, y, w, h = box
    a, b, c, d = rule or CORRECTION
    return np.array([x + a * w, y + b * h, c * w, d * h])


def _load_cascade(name: str) -> Any:
    """Return OpenCV's classifier with one of its cascades loaded."""
    import cv2

    if not hasattr(cv2, "CascadeClassifier"):
        raise JclnfError(
            f"OpenCV {cv2.__version__} has no CascadeClassifier (version 5 dropped it); install "
            "opencv-python-headless below 5, or give the face boxes yourself"
        )
    path = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / name
    cascade = cv2.CascadeClassifier(str(path)) if os.path.isfile(path) else None
    if cascade is None or cascade.empty():
        raise JclnfError(
            f"{path}: OpenCV's face cascade is missing; install opencv-python-headless from PyPI "
            "(system packages often leave it out), or give the face boxes yourself"
        )
    return cascade


def _reduced(grey: np.ndarray, side: float) -> tuple[np.ndarray, float]:
    """Return a copy no larger than `side`, and its size as a part of the image's."""
    import cv2

    factor = min(1.0, side / max(grey.shape))
    size = tuple(max(1, round(s * factor)) for s in grey.shape[::-1])
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if factor < 1 else grey
    return small, factor


def _enlarged(box: np.ndarray, factor: float) -> np.ndarray:
    """Return in the image a box of its reduced copy."""
    # Pixel centres are at integers, so a reduced image's are half a pixel in.
    return np.concatenate([(box[:2] + 0.5) / factor - 0.5, box[2:] / factor])


def _search(native: Native, image: np.ndarray, smallest: float) -> list[_Found]:
    """Return the boxes, at all scales, that a cascade finds, in its own meaning, and its scores."""
    side = max(1, round(smallest))
    with native.used() as cascade:
        raw, _, weights = cascade.detectMultiScale3(
            image, scaleFactor=1.1, minNeighbors=3, minSize=(side, side), outputRejectLevels=True
        )
    return [
        (np.asarray(box, np.float64), float(score))
        for box, score in zip(raw, np.ravel(weights), strict=True)
    ]


def _tilt(image: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return `image` turned counter-clockwise on a larger canvas, and the (2, 3) way back."""
    import cv2

    h, w = image.shape
    if degrees == 0:
        return image, np.eye(2, 3)
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1.0)
    cos, sin = np.abs(matrix[0, :2])
    width, height = round(w * cos + h * sin), round(w * sin + h * cos)
    matrix[:, 2] += (width - w) / 2, (height - h) / 2
    return cv2.warpAffine(image, matrix, (width, height)), cv2.invertAffineTransform(matrix)


def _turn_box(box: np.ndarray, degrees: float, back: np.ndarray) -> np.ndarray:
    """Return the upright box of the ellipse that fills `box` in the tilted image."""
    x, y, w, h = box
    cx, cy = back @ (x + w / 2, y + h / 2, 1.0)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    width, height = np.hypot(w * cos, h * sin), np.hypot(w * sin, h * cos)
    return np.array([cx - width / 2, cy - height / 2, width, height])


def _best_of_overlapping(found: list[_Found]) -> list[_Found]:
    """Return what no better one covers half of. The frontal cascade's scores are all above the
    profile cascade's, and its boxes are the more exact."""
    keep: list[_Found] = []
    for box, score in sorted(found, key=lambda each: -each[1]):
        if all(_covered(box, other) < 0.5 for other, _ in keep):
            keep.append((box, score))
    return keep


def _covered(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area common to two boxes as a part of the smaller one's."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = np.prod(np.maximum(high - low, 0.0))
    return float(common / min(a[2] * a[3], b[2] * b[3]))
