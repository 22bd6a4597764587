"""Images of faces that are all turned and sized alike."""

import cv2
import numpy as np

from jclnf.geometry import similarity_between, similarity_matrix

MILLIMETRES = 160.0
"""Side of what an aligned image shows, in millimetres at the face: as OpenFace's."""


def aligned_face(
    image: np.ndarray, landmarks: np.ndarray, mean: np.ndarray, side: int
) -> np.ndarray:
    """A face brought by a similarity to where the mean shape's landmarks are.

    Args:
        image: `(h, w, 3)` or `(h, w)` uint8.
        landmarks: `(n, 2)` pixels.
        mean: `(n, 3)` the model's mean shape, millimetres.
        side: of the result, pixels; it shows `MILLIMETRES`.

    Returns:
        `(side, side, 3)` or `(side, side)` uint8; 0 outside of the image.
    """
    points = np.asarray(landmarks, np.float64)
    frame = side / MILLIMETRES * np.asarray(mean, np.float64)[:, :2]
    turn = similarity_matrix(similarity_between(points, frame, least_squares=True))
    shift = (side - 1) / 2 - turn @ points.mean(0)
    matrix = np.concatenate([turn, shift[:, None]], axis=1)
    return np.asarray(cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR))
