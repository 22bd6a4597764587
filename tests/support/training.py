"""Faces to train on that are drawn by the test: dark dots on a bright background."""

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from jclnf.train import MIRROR_68, Faces


def symmetric_mean(seed: int = 0) -> np.ndarray:
    """Some face-like shape of 68 landmarks in millimetres that is its own mirror image."""
    rng = np.random.default_rng(seed)
    shape = rng.uniform(-70, 70, (68, 3)) * [1, 1, 0.4]
    return (shape + shape[MIRROR_68] * [-1.0, 1.0, 1.0]) / 2


def shapes(count: int, modes: int = 4, seed: int = 0) -> np.ndarray:
    """`(count, 68, 3)` shapes of a model with a few modes, mirror images of each other or not."""
    rng = np.random.default_rng(seed)
    mean = symmetric_mean()
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((204, modes)))[0]
    spread = np.linspace(40.0, 15.0, modes)
    both = rng.standard_normal((count, modes)) * spread @ basis.T
    return mean + both.reshape(count, 68, 3)


def projected(shapes: np.ndarray, seed: int = 0, *, turn: float = 0.5) -> np.ndarray:
    """Shapes turned and sized at random, `(count, 68, 2)` pixels."""
    rng = np.random.default_rng(seed)
    faces = []
    for shape in shapes:
        angles = rng.uniform(-turn, turn, 3) * [0.5, 1.0, 0.3]
        matrix = Rotation.from_euler("XYZ", angles).as_matrix()
        faces.append(rng.uniform(0.4, 0.7) * shape @ matrix[:2].T + rng.uniform(75, 85, 2))
    return np.array(faces)


def drawn(count: int, seed: int = 0) -> Faces:
    """Faces whose landmarks are dots, each of a grey level of its own."""
    points = projected(shapes(count, seed=seed), seed, turn=0.2)
    rng = np.random.default_rng(seed)
    images = []
    for face in points:
        image = np.full((160, 160), 220, np.uint8)
        for index, (x, y) in enumerate(face):
            centre = (round(float(x) * 16), round(float(y) * 16))
            cv2.circle(image, centre, 3 * 16, 2 * (index % 17) * 6, -1, cv2.LINE_AA, 4)
        noisy = image + rng.normal(0, 2, image.shape)
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return Faces(images, points)
