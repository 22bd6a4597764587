"""The upright frame that a network sees a face in, and the similarities that lead there.

A similarity takes points of a crop to pixels of the image. Points are complex numbers here, x + iy,
so that a similarity is `z -> turn * z + shift`.
"""

from typing import NamedTuple

import cv2
import numpy as np

from jclnf.train._faces import MIRROR_68

STEP = 1.25
"""Pixels of the image along one of a crop, above which the image is reduced beforehand."""


class Similarity(NamedTuple):
    """`z -> turn * z + shift`, from a crop to the image."""

    turn: complex
    shift: complex

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points `(n, 2)` of the crop in the image."""
        return as_pairs(self.turn * as_complex(points) + self.shift)

    def inverse(self) -> "Similarity":
        """From the image to the crop."""
        return Similarity(1 / self.turn, -self.shift / self.turn)

    def about(self, centre: complex, turn: complex, shift: complex) -> "Similarity":
        """Turned and sized by `turn` around a point of the crop, then moved by image pixels."""
        turned = self.turn * turn
        return Similarity(turned, self.turn * centre + self.shift + shift - turned * centre)


class Frame(NamedTuple):
    """A square crop and where the mean face lies in it."""

    side: int
    mean: np.ndarray
    """`(68, 2)` pixels of the crop."""

    @staticmethod
    def of(mean: np.ndarray, side: int, margin: float) -> "Frame":
        """The frame whose side is `margin` mean sides of the mean face's box, box in the middle."""
        low, high = mean.min(0), mean.max(0)
        size = side / margin / (high - low).mean()
        return Frame(side, (mean - (low + high) / 2) * size + (side - 1) / 2)

    @property
    def middle(self) -> complex:
        return complex(1, 1) * (self.side - 1) / 2

    @property
    def eyes(self) -> float:
        """Distance in pixels of the outer corners of the mean face's eyes."""
        return float(np.linalg.norm(self.mean[36] - self.mean[45]))

    def aligned(self, points: np.ndarray) -> Similarity:
        """The similarity that takes the mean face nearest to points of the image."""
        return nearest_similarity(self.mean, points)

    def of_box(self, box: np.ndarray) -> Similarity:
        """Upright, the mean face's box on the given box (x, y, w, h)."""
        size = np.asarray(box[2:]).mean() / np.ptp(self.mean, axis=0).mean()
        middle = complex(*(np.asarray(box[:2]) + np.asarray(box[2:]) / 2))
        return Similarity(complex(size), middle - size * self.middle)


def as_complex(points: np.ndarray) -> np.ndarray:
    return points[..., 0] + 1j * points[..., 1]


def as_pairs(points: np.ndarray) -> np.ndarray:
    return np.stack([points.real, points.imag], -1)


def nearest_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """The least-squares similarity from points `(n, 2)` to others."""
    a, b = as_complex(source), as_complex(target)
    centred = a - a.mean()
    turn = complex(np.vdot(centred, b) / np.vdot(centred, centred).real)
    return Similarity(turn, complex(b.mean() - turn * a.mean()))


def mean_shape(points: np.ndarray) -> np.ndarray:
    """The mirror-symmetric mean `(n, 2)` of faces `(f, n, 2)` after similarities, of unit size."""
    flipped = points[:, MIRROR_68] * [-1.0, 1.0]
    faces = as_complex(np.concatenate([points, flipped]))
    faces = faces - faces.mean(1, keepdims=True)
    mean = faces[0]
    for _ in range(10):
        turns = (faces.conj() @ mean) / (np.abs(faces) ** 2).sum(1)
        mean = (turns[:, None] * faces).mean(0)
        mean = as_pairs(mean)
        mean = as_complex(mean + mean[MIRROR_68] * [-1.0, 1.0])
        # Upright: the line from the eyes' middle to the chin points down.
        down = mean[8] - mean[36:48].mean()
        mean = mean * (1j / (down / abs(down)))
        mean = mean / np.sqrt((np.abs(mean) ** 2).sum())
    return as_pairs(mean)


def cut(image: np.ndarray, view: Similarity, side: int) -> np.ndarray:
    """The crop `(side, side)` of an image, bilinearly, zero outside, without much aliasing."""
    step = abs(view.turn)
    if step > STEP:
        height, width = (max(1, round(n * STEP / step)) for n in image.shape)
        zoom = np.array([width / image.shape[1], height / image.shape[0]])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    else:
        zoom = np.ones(2)
    matrix = np.array(
        [
            [view.turn.real, -view.turn.imag, view.shift.real],
            [view.turn.imag, view.turn.real, view.shift.imag],
        ]
    )
    matrix[:, 2] += 0.5
    matrix *= zoom[:, None]
    matrix[:, 2] -= 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (side, side), flags=flags)
