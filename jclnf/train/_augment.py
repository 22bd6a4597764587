"""Random changes of an image's light and quality, as cameras and videos make them."""

import cv2
import numpy as np

_NIGHT = 0.15
"""Chance of an image by night."""
_DARKEST, _NOISE = 0.06, (1.0, 8.0)


def augment(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image `(h, w)` uint8 under other light, less sharp, noisy, compressed, partly hidden.

    Each change happens with a probability of its own.
    """
    height, width = grey.shape
    image: np.ndarray = grey.astype(np.float32)
    if rng.random() < 0.25:
        image = _coarser(image, rng.uniform(1.2, 3.0))
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.0))
    if rng.random() < 0.15:
        image = _motion(image, int(rng.integers(3, 8)), rng.uniform(0, np.pi))
    if rng.random() < 0.5:
        image = 255 * (np.clip(image, 0, 255) / 255) ** np.exp(rng.normal(0, 0.35))
    if rng.random() < 0.4:
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.7)
        x = np.linspace(-1, 1, width, dtype=np.float32) * np.cos(angle)
        y = np.linspace(-1, 1, height, dtype=np.float32) * np.sin(angle)
        image = image * (1 + strength * (x + y[:, None]))
    image = rng.uniform(0.6, 1.4) * (image - 128) + 128 + rng.normal(0, 20)
    if rng.random() < 0.3:
        image = _hidden(image, rng)
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(1, 14), image.shape)
    if rng.random() < _NIGHT:
        image = by_night(image, 2.0, rng)
    image = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 70))]
        return np.asarray(
            cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_GRAYSCALE)
        )
    return image


def by_night(image: np.ndarray, coarsest: float, rng: np.random.Generator) -> np.ndarray:
    """An image as a far camera in the dark shows it: coarse, with few grey levels, noisy.

    Args:
        image: `(h, w)` float32, grey levels 0-255.
        coarsest: most pixels of the image to one of the camera's, along each side.
        rng: how far, how dark and how noisy.
    """
    height, width = image.shape
    factor = np.exp(rng.uniform(0, np.log(coarsest)))
    size = (max(8, round(width / factor)), max(8, round(height / factor)))
    light = np.exp(rng.uniform(np.log(_DARKEST), 0))
    small = light * np.clip(cv2.resize(image, size, interpolation=cv2.INTER_AREA), 0, 255)
    noise = rng.standard_normal(small.shape, np.float32) * rng.uniform(*_NOISE)
    seen = np.clip(np.rint(small + noise), 0, 255).astype(np.float32)
    return cv2.resize(seen, (width, height), interpolation=cv2.INTER_LINEAR)


def _coarser(image: np.ndarray, factor: float) -> np.ndarray:
    """The image as a smaller one would show it."""
    height, width = image.shape
    small = (max(8, round(width / factor)), max(8, round(height / factor)))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)


def _motion(image: np.ndarray, length: int, angle: float) -> np.ndarray:
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    reach = middle * np.array([np.cos(angle), np.sin(angle)])
    a, b = np.rint([middle - reach, middle + reach]).astype(int)
    cv2.line(kernel, tuple(map(int, a)), tuple(map(int, b)), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _hidden(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rectangle or an ellipse of one grey level, or of another part of the image, in front."""
    height, width = image.shape
    size = rng.uniform(0.1, 0.4, 2) * [width, height]
    centre = rng.uniform(0, 1, 2) * [width, height]
    mask = np.zeros((height, width), np.uint8)
    turn = float(rng.uniform(0, 180))
    if rng.random() < 0.5:
        shape = (tuple(map(float, centre)), tuple(map(float, size)), turn)
        corners = cv2.boxPoints(shape)
        cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), 1)
    else:
        at = tuple(int(c) for c in centre)
        cv2.ellipse(mask, at, tuple(int(s / 2) + 1 for s in size), turn, 0, 360, 1, -1)
    if rng.random() < 0.5:
        front = np.full_like(image, rng.uniform(0, 255))
    else:
        front = np.roll(image, tuple(rng.integers(0, [height, width])), axis=(0, 1))
    return np.where(mask > 0, front, image)
