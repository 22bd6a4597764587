"""OpenFace's face detector, a cascade of three networks, where the user has its files.

Zhang, Zhang, Li, Qiao, "Joint face detection and alignment using multitask cascaded convolutional
networks" (IEEE Signal Processing Letters, 2016), in the arithmetic of OpenFace 2.2: boxes are made
whole numbers where it does so, and corrected from what the networks mean to the face outline.
"""

import os

import jax.numpy as jnp
import numpy as np

from jclnf.detect._base import check_image, check_min_face, smallest_face
from jclnf.detect._mtcnn_networks import Network, faces, make_network
from jclnf.errors import DetectorError
from jclnf.openface import INPUT_SIDES, read_mtcnn
from jclnf.runtime import check_process

CORRECTION = (-0.0075, 0.2459, 1.0323, 0.7751)
"""(a, b, c, d): from the networks' box to the face outline by x + a w, y + b h, c w, d h, as
OpenFace has it."""

THRESHOLDS = (0.6, 0.7, 0.7)
"""Probability that a box must have to pass each of the networks."""

_PYRAMID = 0.709
_CELL, _STEP = 12, 2

_SIDES = (32, 64, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
"""Sides of the squares to which the images of the pyramid are padded. Few, for a program is
compiled for each; an image of 640 pixels has its largest at 128, so padding costs little."""
_BATCH, _REST = 16, 4
"""Boxes are given to the later networks in batches of 16 and the rest in batches of 4, padded."""

_LEAST = 60
"""Side in pixels of the smallest faces that OpenFace searches for."""

_MOST_PROPOSALS = 20_000
"""Boxes of a level that are looked at, the likeliest: an image has a few hundred."""


class MtcnnDetector:
    """Faces by OpenFace's MTCNN, also turned to the side; satisfies `Detector`, and wants colour.

    Several threads may call one detector.
    """

    wants_colour = True
    takes_min_face = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        min_face: float | None = None,
        max_side: int = 4096,
    ) -> None:
        """Read the networks.

        Args:
            path: OpenFace's model folder, its folder `mtcnn_detector`, or the list in it; None for
                where OpenFace's models are installed.
            min_face: Side in pixels of the smallest face searched for, from 12 on. If not given
                OpenFace's 60, and a 36th of the longer side of large images. The time grows with
                the number of such boxes that the image holds.
            max_side: Longer side in pixels to which a larger image is reduced for the search.

        Raises:
            ModelFileError: a file is missing or damaged.
            DetectorError: `min_face` or `max_side` is too small.
        """
        if max_side < 1:
            raise DetectorError(f"max_side is {max_side}; give the longer side in pixels")
        self.min_face = check_min_face(min_face)
        self.max_side = max_side
        arrays = read_mtcnn(path)
        self._pnet, self._rnet, self._onet = (make_network(network) for network in arrays)

    def __call__(self, image: np.ndarray, /, *, min_face: float | None = None) -> np.ndarray:
        """Return the boxes of all faces, the largest first; see `Detector`."""
        return self.detect(image, min_face)[0]

    def detect(
        self, image: np.ndarray, min_face: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes, the largest first, and the probability of each.

        Args:
            image: `(h, w, 3)` uint8, blue, green, red; upright.
            min_face: in place of the detector's own.

        Returns:
            boxes: `(k, 4)` float64, x, y, w, h of the face outline in pixels of `image`.
            scores: `(k,)` float64, 0.7 to 1.

        Raises:
            ImageError: `image` is not of that shape and type.
        """
        import cv2

        check_process()
        image = check_image(image, colour=True)
        longer = max(image.shape[:2])
        least = smallest_face((max(longer, 36 * _LEAST),), check_min_face(min_face), self.min_face)
        factor = max(1.0, longer / self.max_side)
        if factor > 1:
            size = tuple(max(1, round(s / factor)) for s in image.shape[1::-1])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        rgb = np.ascontiguousarray(image[:, :, ::-1], np.float32)

        boxes, found = self._propose(rgb, max(float(_CELL), least / factor))
        boxes = _square(_corrected(boxes, found[:, 1:]), rgb)
        boxes, found = _refine(self._rnet, INPUT_SIDES["RNet"], rgb, boxes, THRESHOLDS[1])
        keep = suppress(boxes, found[:, 0], 0.7)
        boxes = _square(_corrected(boxes[keep], found[keep, 1:]), rgb)
        boxes, found = _refine(self._onet, INPUT_SIDES["ONet"], rgb, boxes, THRESHOLDS[2])
        boxes = _corrected(boxes, found[:, 1:], larger=1)
        keep = suppress(boxes, found[:, 0], 0.7, of_smaller=True)
        boxes, scores = correct(boxes[keep]) * factor, found[keep, 0]
        boxes[:, :2] += (factor - 1) / 2
        order = np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")
        return boxes[order], scores[order]

    def _propose(self, rgb: np.ndarray, min_face: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the first network's boxes, and for each its probability and correction."""
        import cv2

        height, width = rgb.shape[:2]
        boxes, found = [np.zeros((0, 4))], [np.zeros((0, 5))]
        levels = np.log(min_face / min(height, width)) / np.log(_PYRAMID)
        for level in range(int(np.floor(levels)) + 1):
            scale = _CELL / min_face * _PYRAMID**level
            size = int(np.ceil(width * scale)), int(np.ceil(height * scale))
            small = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)
            answer = _over_image(self._pnet, small)
            y, x = np.nonzero(answer[..., 0] >= THRESHOLDS[0])
            likeliest = np.argsort(-answer[y, x, 0], kind="stable")[:_MOST_PROPOSALS]
            y, x = y[likeliest], x[likeliest]
            low = np.stack([x, y], axis=1) * _STEP + 1
            low, high = np.trunc(low / scale), np.trunc((low + _CELL - 1) / scale)
            here = np.concatenate([low, high - low], axis=1)
            keep = suppress(here, answer[y, x, 0], 0.5)
            boxes.append(here[keep])
            found.append(answer[y, x][keep])
        all_boxes, all_found = np.concatenate(boxes), np.concatenate(found)
        keep = suppress(all_boxes, all_found[:, 0], 0.7)
        return all_boxes[keep], all_found[keep]


def correct(boxes: np.ndarray) -> np.ndarray:
    """Return the face outlines' boxes for boxes of the networks, both `(k, 4)` x, y, w, h."""
    a, b, c, d = CORRECTION
    x, y, w, h = boxes.T
    return np.stack([x + a * w, y + b * h, c * w, d * h], axis=1)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, most: float, *, of_smaller: bool = False
) -> np.ndarray:
    """Greedy non-maximum suppression over boxes made whole numbers.

    Args:
        boxes: `(k, 4)`, x, y, w, h.
        scores: `(k,)`.
        most: What two boxes have in common, as a part of what they cover together, above which the
            one with the lower score is dropped.
        of_smaller: Take it as a part of the smaller box instead.

    Returns:
        Indices of the boxes that stay, the highest score first.
    """
    low, sizes = np.rint(boxes[:, :2]), np.rint(boxes[:, 2:])
    high, areas = low + sizes, np.prod(sizes, axis=1)
    left = np.argsort(-scores, kind="stable")
    keep = []
    while len(left):
        best, left = left[0], left[1:]
        keep.append(best)
        sides = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        common = np.prod(np.maximum(sides, 0), axis=1)
        if of_smaller:
            whole = np.minimum(areas[best], areas[left])
        else:
            whole = areas[best] + areas[left] - common
        left = left[~(common > most * whole)]
    return np.array(keep, int)


def _corrected(boxes: np.ndarray, parts: np.ndarray, larger: int = 0) -> np.ndarray:
    """Return boxes with their sides moved by parts of their size, which is taken `larger` pixels
    larger."""
    boxes = np.rint(boxes)
    low, sizes = boxes[:, :2], boxes[:, 2:] + larger
    new_low = low + sizes * parts[:, :2]
    return np.concatenate([new_low, low + sizes * (1 + parts[:, 2:]) - new_low], axis=1)


def _square(boxes: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Return squares about the centres of boxes, in whole numbers; without those that, by damaged
    networks, are far larger than the image or outside of it."""
    side = boxes[:, 2:].max(axis=1, keepdims=True, initial=0)
    low = np.trunc(boxes[:, :2] + (boxes[:, 2:] - side) / 2)
    squares = np.concatenate([low, np.trunc(side), np.trunc(side)], axis=1)
    shape = np.array(rgb.shape[1::-1])
    with np.errstate(invalid="ignore"):
        sane = (side[:, 0] >= 1) & (side[:, 0] <= 4 * shape.max())
        sane &= np.all((low + side > 0) & (low < shape), axis=1)
    return squares[sane]


def _refine(
    network: Network, side: int, rgb: np.ndarray, boxes: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes that a network finds likely, and for each probability and correction."""
    answers = [np.zeros((0, 5))]
    start = 0
    while start < len(boxes):
        length = _BATCH if len(boxes) - start > _BATCH - _REST else _REST
        some = boxes[start : start + length]
        batch = np.zeros((length, side, side, 3), np.float32)
        for i, box in enumerate(some):
            batch[i] = _cut(rgb, box, side)
        answer = faces(network, jnp.asarray(batch), jnp.array([side, side]))
        answers.append(np.asarray(answer, np.float64).reshape(length, 5)[: len(some)])
        start += length
    found = np.concatenate(answers)
    keep = found[:, 0] >= least
    return boxes[keep], found[keep]


def _cut(rgb: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Return a square of the image, zero outside of it, resized; it begins a pixel before the box
    and is a pixel larger."""
    import cv2

    x, y, size = (int(v) for v in box[:3])
    x, y, size = x - 1, y - 1, size + 1
    x0, y0 = max(x, 0), max(y, 0)
    cropped = rgb[y0 : max(y + size, 0), x0 : max(x + size, 0)]
    h, w = cropped.shape[:2]
    if (h, w) != (size, size):
        whole = np.zeros((size, size, 3), np.float32)
        whole[y0 - y : y0 - y + h, x0 - x : x0 - x + w] = cropped
        cropped = whole
    return cv2.resize(cropped, (side, side), interpolation=cv2.INTER_LINEAR)


def _over_image(network: Network, image: np.ndarray) -> np.ndarray:
    """Return the first network's answers at every second pixel of an image, `(y, x, 5)`."""
    height, width = image.shape[:2]
    if min(height, width) < _CELL:
        return np.zeros((0, 0, 5))
    side = _at_least(max(height, width), _SIDES)
    padded = np.zeros((side, side, 3), np.float32)
    padded[:height, :width] = image
    size = jnp.array([height, width])
    answer = np.asarray(faces(network, jnp.asarray(padded[None]), size)[0], np.float64)
    # ceil: the pooling's last window reaches over the border of an odd image.
    return answer[: -(-(height - _CELL) // _STEP) + 1, : -(-(width - _CELL) // _STEP) + 1]


def _at_least(number: int, steps: tuple[int, ...]) -> int:
    """Return the first of `steps` that is not less than a number, or the number."""
    return next((step for step in steps if step >= number), number)
