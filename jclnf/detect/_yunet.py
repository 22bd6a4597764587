"""OpenCV's face detector YuNet, where the user has its network as an ONNX file.

Wu, Peng, Yu, "YuNet: a tiny millisecond-level face detector" (Machine Intelligence Research, 2023).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.detect._base import check_image, largest_first
from jclnf.errors import DetectorError, JclnfError, ModelFileError

CORRECTION = (-0.0075, 0.2459, 1.0323, 0.7751)
"""(a, b, c, d): from the network's box to the face outline by x + a w, y + b h, c w, d h.

Assumed, not measured: YuNet and MTCNN both learned from WIDER FACE, whose boxes go from the
forehead to the chin, so these are the numbers that OpenFace has for MTCNN's boxes. Give others as
`correction` where they are known for a file."""


class YuNetDetector:
    """Faces by `cv2.FaceDetectorYN`; satisfies `Detector`, and wants colour.

    One detector must not be called from two threads at once.
    """

    wants_colour = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        min_score: float = 0.8,
        max_side: int = 640,
        correction: tuple[float, float, float, float] = CORRECTION,
    ) -> None:
        """Load the network.

        Args:
            path: The ONNX file, such as `face_detection_yunet_2023mar.onnx` of OpenCV's model zoo.
            min_score: Least score of a face, 0 to 1.
            max_side: Longer side in pixels to which a larger image is reduced for the search:
                the network knows faces of about 10 to 300 pixels.
            correction: See `CORRECTION`.

        Raises:
            ModelFileError: the file is missing, or none that OpenCV can load.
            JclnfError: this OpenCV has no YuNet.
        """
        import cv2

        self.path = Path(path)
        self.max_side = max_side
        self.correction = correction
        if not hasattr(cv2, "FaceDetectorYN"):
            raise JclnfError(
                f"OpenCV {cv2.__version__} has no FaceDetectorYN; install opencv-python-headless "
                "4.5.4 or later, or choose another detector"
            )
        if not self.path.is_file():
            raise ModelFileError(
                self.path,
                "no such file; give YuNet's network, face_detection_yunet_2023mar.onnx of OpenCV's "
                "model zoo",
            )
        try:
            self._detector: Any = cv2.FaceDetectorYN.create(
                str(self.path), "", (320, 320), score_threshold=min_score
            )
        except cv2.error as e:
            raise ModelFileError(
                self.path, f"OpenCV cannot load it as YuNet's network: {_reason(e)}"
            ) from e

    def __call__(self, image: np.ndarray, /) -> np.ndarray:
        """Return the boxes of all faces, the largest first; see `Detector`.

        Raises:
            ImageError: `image` is not `(h, w, 3)` uint8.
            DetectorError: OpenCV cannot run the network.
        """
        import cv2

        image = check_image(image, colour=True)
        height, width = image.shape[:2]
        factor = max(1.0, max(height, width) / self.max_side)
        size = max(1, round(width / factor)), max(1, round(height / factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor > 1 else image
        try:
            self._detector.setInputSize(size)
            found = self._detector.detect(small)[1]
        except cv2.error as e:
            raise DetectorError(
                f"{self.path}: OpenCV cannot run it on an image of {size[0]} x {size[1]} "
                f"({_reason(e)}); give a network that takes images of any size, as "
                "face_detection_yunet_2023mar.onnx does"
            ) from e
        if found is None:
            return np.zeros((0, 4))
        # Each row: the box, five points (eyes, nose, corners of the mouth), the score.
        x, y, w, h = np.asarray(found, np.float64)[:, :4].T * factor
        a, b, c, d = self.correction
        boxes = np.stack([x + a * w, y + b * h, c * w, d * h], axis=1)
        # Pixel centres are at integers, so a reduced image's are half a pixel in.
        boxes[:, :2] += (factor - 1) / 2
        return largest_first(boxes)


def _reason(error: Exception) -> str:
    """Return what an error of OpenCV's says, without its tale of files and lines."""
    return str(getattr(error, "err", "") or error).strip()
