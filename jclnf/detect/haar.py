"""Viola and Jones's cascade of Haar features, as OpenCV has it, with boxes made to fit.

Viola, Jones, "Rapid object detection using a boosted cascade of simple features" (CVPR 2001). It
needs no model file beyond the one that OpenCV brings, and finds faces that look at the camera.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jclnf.detect.base import check_picture
from jclnf.errors import JclnfError

CASCADE = "haarcascade_frontalface_alt2.xml"

CORRECTION = (0.0502, 0.2252, 0.888, 0.8571)
"""(a, b, c, d): from the cascade's box to the face outline by x + a w, y + b h, c w, d h. Medians
over annotated faces: experiments/haar_boxes."""

MIN_SCORE = 55.0
"""Sum of the last stage's weights under which a detection is dropped: under it are fewer than one
in a hundred of the faces, and a third of what is no face (experiments/haar_boxes)."""

# The second look: a small copy, which noise does not survive, upright and tilted either way. The
# cascade finds faces tilted up to about 15 degrees, these reach 40.
_SECOND_SIDE = 320
_SECOND_DEGREES = (0.0, -25.0, 25.0)
_SECOND_MIN_FACE = 1 / 8


class HaarDetector:
    """Faces by OpenCV's frontal cascade; satisfies `Detector`.

    A picture is first searched upright. Only if that finds nothing, a small copy of it is searched
    again, also tilted to either side, for one large face that is tilted or in a noisy picture. The
    time is bounded by the reduction to `max_side`, whatever the size of the picture. One detector
    must not be called from two threads at once.
    """

    def __init__(self, *, max_side: int = 1024, min_face: float = 1 / 32) -> None:
        """Load the cascade.

        Args:
            max_side: Longer side in pixels to which a larger picture is reduced for the search.
            min_face: Side of the smallest face searched for, in longer sides of the picture.

        Raises:
            JclnfError: this OpenCV has no cascade classifier, or its file is missing.
        """
        self.max_side = max_side
        self.min_face = min_face
        self._cascade = _load_cascade()

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """Return the boxes of all faces, the largest first; see `Detector`."""
        return self.detect(grey)[0]

    def detect(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes, the largest first, and the cascade's score for each.

        Args:
            grey: `(h, w)` uint8, upright.

        Returns:
            boxes: `(k, 4)` float64, x, y, w, h of the face outline in pixels of `grey`.
            scores: `(k,)` float64, from about `MIN_SCORE`; comparable between pictures.

        Raises:
            ImageError: `grey` is not of that shape and type.
        """
        grey = check_picture(grey, colour=False)
        found = self._search(grey, self.max_side, self.min_face, (0.0,))
        if len(found[0]) == 0:
            found = self._search(grey, _SECOND_SIDE, _SECOND_MIN_FACE, _SECOND_DEGREES)
        return found

    def _search(
        self, grey: np.ndarray, side: int, min_face: float, degrees: tuple[float, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search a copy of `grey` no larger than `side`, at each of the tilts."""
        import cv2

        factor = min(1.0, side / max(grey.shape))
        size = tuple(max(1, round(s * factor)) for s in grey.shape[::-1])
        small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if factor < 1 else grey
        smallest = max(1, round(min_face * max(size)))
        boxes, scores = [], []
        for angle in degrees:
            turned, back = _tilt(small, angle)
            raw, _, weights = self._cascade.detectMultiScale3(
                turned,
                scaleFactor=1.1,
                minNeighbors=3,
                minSize=(smallest, smallest),
                outputRejectLevels=True,
            )
            boxes += [_turn_box(correct(np.asarray(b, np.float64)), angle, back) for b in raw]
            scores += [float(s) for s in np.ravel(weights)]
        keep = _best_of_overlapping(boxes, scores)
        if not keep:
            return np.zeros((0, 4)), np.zeros(0)
        found, score = np.array(boxes)[keep], np.array(scores)[keep]
        # Pixel centres are at integers, so a reduced picture's are half a pixel in.
        found[:, :2] = (found[:, :2] + 0.5) / factor - 0.5
        found[:, 2:] /= factor
        order = np.argsort(-found[:, 2] * found[:, 3], kind="stable")
        return found[order], score[order]


def correct(box: np.ndarray) -> np.ndarray:
    """Return the face outline's box for a box of the cascade, both `(4,)` x, y, w, h."""
    x, y, w, h = box
    a, b, c, d = CORRECTION
    return np.array([x + a * w, y + b * h, c * w, d * h])


def _load_cascade() -> Any:
    """Return OpenCV's classifier with the frontal cascade loaded."""
    import cv2

    if not hasattr(cv2, "CascadeClassifier"):
        raise JclnfError(
            f"OpenCV {cv2.__version__} has no CascadeClassifier (version 5 dropped it); install "
            "opencv-python-headless below 5, or give the face boxes yourself"
        )
    path = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / CASCADE
    cascade = cv2.CascadeClassifier(str(path)) if path.is_file() else None
    if cascade is None or cascade.empty():
        raise JclnfError(
            f"{path}: OpenCV's face cascade is missing; install opencv-python-headless from PyPI "
            "(system packages often leave it out), or give the face boxes yourself"
        )
    return cascade


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
    """Return the upright box of the ellipse that fills `box` in the tilted picture."""
    x, y, w, h = box
    cx, cy = back @ (x + w / 2, y + h / 2, 1.0)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    width, height = np.hypot(w * cos, h * sin), np.hypot(w * sin, h * cos)
    return np.array([cx - width / 2, cy - height / 2, width, height])


def _best_of_overlapping(boxes: list[np.ndarray], scores: list[float]) -> list[int]:
    """Return the indices of boxes of at least `MIN_SCORE` that no better one covers half of."""
    keep: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if scores[i] < MIN_SCORE:
            break
        if all(_covered(boxes[i], boxes[j]) < 0.5 for j in keep):
            keep.append(i)
    return keep


def _covered(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area common to two boxes as a part of the smaller one's."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    common = np.prod(np.maximum(high - low, 0.0))
    return float(common / min(a[2] * a[3], b[2] * b[3]))
