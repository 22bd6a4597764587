"""OpenCV's face detector YuNet, where the user has its network as an ONNX file.

Wu, Peng, Yu, "YuNet: a tiny millisecond-level face detector" (Machine Intelligence Research, 2023).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.detect._base import (
    Native,
    check_image,
    check_min_face,
    largest_first,
    smallest_face,
)
from jclnf.errors import DetectorError, JclnfError, ModelFileError

CORRECTION = (-0.0075, 0.2459, 1.0323, 0.7751)
"""(a, b, c, d): from the network's box to the face outline by x + a w, y + b h, c w, d h.

Assumed, not measured: YuNet and MTCNN both learned from WIDER FACE, whose boxes go from the
forehead to the chin, so these are the numbers that OpenFace has for MTCNN's boxes. Give others as
`correction` where they are known for a file."""


_FACE = 640 / 36
"""Side in pixels to which the smallest face is reduced: the network knows those of about 10 to 300
pixels."""
_LEAST_SIDE = 320
"""Longer side in pixels under which an image is not reduced."""


class YuNetDetector:
    """Faces by `cv2.FaceDetectorYN`; satisfies `Detector`, and wants colour.

    Several threads may call one detector: they take turns.
    """

    wants_colour = True
    takes_min_face = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        min_score: float = 0.8,
        min_face: float | None = None,
        correction: tuple[float, float, float, float] = CORRECTION,
    ) -> None:
        """Load the network.

        Args:
            path: The ONNX file, such as `face_detection_yunet_2023mar.onnx` of OpenCV's model zoo.
            min_score: Least score of a face, 0 to 1.
            min_face: Side in pixels of the smallest face searched for; a 36th of the image's longer
                side if not given. The image is reduced accordingly.
            correction: See `CORRECTION`.

        Raises:
            ModelFileError: the file is missing, or none that OpenCV can load.
            JclnfError: this OpenCV has no YuNet.
        """
        import cv2

        self.path = Path(path)
        self.min_face = check_min_face(min_face)
        self.correction = correction
        if not hasattr(cv2, "FaceDetectorYN"):
            raise JclnfError(
                f"OpenCV {cv2.__version__} has no FaceDetectorYN; install opencv-python-headless "
                "4.5.4 or later, or choose another detector"
            )
        if not os.path.isfile(self.path):
            raise ModelFileError(
                self.path,
                "no such file; give YuNet's network, face_detection_yunet_2023mar.onnx of OpenCV's "
                "model zoo",
            )
        try:
            self._detector = Native(_load, str(self.path), min_score)
        except cv2.error as e:
            raise ModelFileError(
                self.path, f"OpenCV cannot load it as YuNet's network: {_reason(e)}"
            ) from e

    def __call__(self, image: np.ndarray, /, *, min_face: float | None = None) -> np.ndarray:
        """Return the boxes of all faces, the largest first; see `Detector`."""
        return self.detect(image, min_face)[0]

    def detect(
        self, image: np.ndarray, min_face: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes, the largest first, and the score of each.

        Args:
            image: `(h, w, 3)` uint8, blue, green, red, upright.
            min_face: in place of the detector's own.

        Returns:
            boxes: `(k, 4)` float64, x, y, w, h of the face outline in pixels of `image`.
            scores: `(k,)` float64, 0 to 1.

        Raises:
            ImageError: `image` is not of that shape and type.
            DetectorError: OpenCV cannot run the network.
        """
        import cv2

        image = check_image(image, colour=True)
        height, width = image.shape[:2]
        least = smallest_face(image.shape, check_min_face(min_face), self.min_face)
        factor = max(1.0, min(least / _FACE, max(height, width) / _LEAST_SIDE))
        size = max(1, round(width / factor)), max(1, round(height / factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor > 1 else image
        try:
            with self._detector.used() as network:
                network.setInputSize(size)
                found = network.detect(small)[1]
        except cv2.error as e:
            raise DetectorError(
                f"{self.path}: OpenCV cannot run it on an image of {size[0]} x {size[1]} "
                f"({_reason(e)}); give a network that takes images of any size, as "
                "face_detection_yunet_2023mar.onnx does"
            ) from e
        if found is None:
            return np.zeros((0, 4)), np.zeros(0)
        # Each row: the box, five points (eyes, nose, corners of the mouth), the score.
        rows = np.asarray(found, np.float64)
        x, y, w, h = rows[:, :4].T * factor
        a, b, c, d = self.correction
        boxes = np.stack([x + a * w, y + b * h, c * w, d * h, rows[:, -1]], axis=1)
        # Pixel centres are at integers, so a reduced image's are half a pixel in.
        boxes[:, :2] += (factor - 1) / 2
        boxes = largest_first(boxes)
        return boxes[:, :4], boxes[:, 4]


def _load(path: str, min_score: float) -> Any:
    """Return OpenCV's object with the network of a file."""
    import cv2

    return cv2.FaceDetectorYN.create(path, "", (320, 320), score_threshold=min_score)


def _reason(error: Exception) -> str:
    """Return what an error of OpenCV's says, without its tale of files and lines."""
    return str(getattr(error, "err", "") or error).strip()
