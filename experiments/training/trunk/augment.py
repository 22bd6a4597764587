"""Random crops of a face, in other places, under other light, less sharp, partly hidden."""

from typing import NamedTuple

import cv2
import numpy as np

from experiments.training.trunk.frame import Frame, Similarity, cut
from jclnf.train._augment import by_night
from jclnf.train._faces import MIRROR_68

NIGHT = 0.02
"""Chance of an image by night."""
SMALLEST = 12.0
"""Eye distance, in pixels of the camera, of the smallest faces by night."""


class Example(NamedTuple):
    """A crop `(side, side)` uint8 and its points `(68, 2)` in pixels of the crop."""

    image: np.ndarray
    points: np.ndarray


def example(
    image: np.ndarray,
    points: np.ndarray,
    frame: Frame,
    stride: int,
    rng: np.random.Generator,
) -> Example:
    """A random crop of a face; the stride is as for `worsened`."""
    view = random_view(points, frame, rng)
    crop, moved = cut(image, view, frame.side), view.inverse()(points)
    if rng.random() < 0.5:
        crop, moved = mirrored(crop, moved)
    return Example(worsened(crop, rng, stride, coarsest=frame.eyes / SMALLEST), moved)


def mirrored(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mirror image, and the same landmarks there."""
    flipped = points[MIRROR_68].copy()
    flipped[:, 0] = image.shape[1] - 1 - flipped[:, 0]
    return np.ascontiguousarray(image[:, ::-1]), flipped


def random_view(points: np.ndarray, frame: Frame, rng: np.random.Generator) -> Similarity:
    """Half of the views are disturbed from the aligned one, half of these gently; the other half
    are of jittered upright boxes, turned."""
    side = np.ptp(points, axis=0).mean()
    if rng.random() < 0.5:
        degrees, size, shift = (5.0, 0.05, 0.025) if rng.random() < 0.5 else (20.0, 0.12, 0.06)
        view = frame.aligned(points)
    else:
        degrees, size, shift = 12.0, 0.06, 0.03
        low, high = points.min(0), points.max(0)
        view = frame.of_box(np.concatenate([low, high - low]))
    turn = np.exp(complex(rng.normal(0, size), np.deg2rad(rng.normal(0, degrees))))
    return view.about(frame.middle, turn, side * complex(*rng.normal(0, shift, 2)))


def worsened(
    crop: np.ndarray, rng: np.random.Generator, stride: int, *, coarsest: float | None = None
) -> np.ndarray:
    """A crop as other cameras and other light would show it. Each change has its own chance.

    Args:
        crop: `(side, side)` uint8.
        rng: what is changed, and how much.
        stride: pixels of the crop to one that a network sees after its stem, if it has one.
        coarsest: by night, pixels of the crop to one of the camera's at most; never if not given.
    """
    side = len(crop)
    image = crop.astype(np.float32)
    if rng.random() < 0.25:
        least, most = 0.25 / stride, 0.8
        part = rng.uniform(least, most)
        if stride > 1:  # each octave as often
            part = least * (most / least) ** ((part - least) / (most - least))
        small = max(8, round(side * part))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), stride * rng.uniform(0.4, 2.0))
    if rng.random() < 0.6:
        image = 255 * (np.clip(image, 0, 255) / 255) ** np.float32(np.exp(rng.normal(0, 0.4)))
    if rng.random() < 0.4:
        turn, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
        along = np.linspace(-1, 1, side, dtype=np.float32)
        x, y = along * np.float32(np.cos(turn)), along * np.float32(np.sin(turn))
        image = image * (1 + np.float32(strength) * (x + y[:, None]))
    if rng.random() < 0.25:
        noise = rng.standard_normal(image.shape, np.float32)
        image = image + np.float32(rng.uniform(1, 10)) * noise
    if coarsest is not None and rng.random() < NIGHT:
        image = by_night(image, coarsest, rng)
    for _ in range(rng.choice(3, p=(0.6, 0.25, 0.15))):
        size = rng.uniform(0.08, 0.4, 2) * side
        left, top = np.rint(rng.uniform(0, side, 2) - size / 2).astype(int)
        right, bottom = np.rint([left, top] + size).astype(int)
        image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = rng.uniform(0, 255)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
