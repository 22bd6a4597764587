"""Photographs as a camera that is far away, in the dark and noisy shows them."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jclnf.images import read_image

FACE = 24.0
"""Mean side of a face's box in pixels of the camera."""
LIGHT = 0.1
"""Share of the light that is left."""
NOISE = 6.0
"""Standard deviation of the camera's noise, in grey levels."""


def by_night(image: Any, box: Any, seed: int) -> Any:
    """A grey image as a far camera in the dark shows it, back at its own size.

    Args:
        image: `(h, w)` uint8.
        box: of the face; it decides how coarse the camera sees.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape
    factor = min(1.0, FACE / float(np.mean(box[2:])))
    size = [max(8, round(factor * side)) for side in (width, height)]
    small = LIGHT * cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    small = np.clip(np.rint(small + rng.normal(0, NOISE, small.shape)), 0, 255).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def by_night_of(boxes: Any) -> Callable[[Path], Any]:
    """Reads images by night, given their boxes; the noise is the same whenever one is read."""
    return lambda path: by_night(read_image(path), boxes[path], seed_of(path.name))


def seed_of(name: str) -> int:
    """The same noise for an image whenever it is read."""
    return zlib.crc32(name.encode())
