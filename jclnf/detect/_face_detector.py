"""The detector that comes with jclnf: one look of a small network, learned with jclnf's own boxes.

The network (`jclnf.detect._network`) knows faces of about 10 to 250 pixels. An image is reduced so
that the smallest face that is wanted has `SMALLEST` pixels; larger faces, whose surroundings it
does not see as a whole, are looked for in a copy of a third of that, and so on. Images are padded
to a few sizes, as a program is compiled for each. What is doubtful is looked at once more, as a
face of `_AGAIN_AT` pixels in the middle of a small image, and mirrored.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jclnf.detect._base import check_image, check_min_face, largest_first, smallest_face
from jclnf.detect._network import MULTIPLE, SHAPES, boxes_of, look
from jclnf.errors import DetectorError, ModelFileError
from jclnf.experts import check_weights, plain_layer
from jclnf.files import bundled_file
from jclnf.params import to_device
from jclnf.runtime import check_process, kept

MIN_SCORE = 0.69
"""Score from which a detection is a face; see experiments/detector."""
SMALLEST = 16.0
"""Side in pixels to which the smallest face is reduced."""

_SIDES = (128, 192, 256, 320, 448, 576, 768, 1024, 1280)
"""Longer sides of the images that the network looks at; larger ones are cut into tiles."""
_SHARES = (0.5, 0.5625, 0.75, 1.0)
"""Shorter sides of these, as parts of the longer one."""
_STEP = 3.0
"""By how much each copy is smaller than the one before, down to a longer side of `_LAST`."""
_LAST = 256
_LARGEST = 150.0
"""Side in pixels of the largest faces of a copy that has a smaller one."""
_AGAIN = 40.0
"""Side in pixels from which faces are looked for in the smaller ones: somewhat less than a `_STEP`
of the largest, so that none is lost between."""
_SURE = 0.8
"""Score from which a detection is not looked at again; under it its score is the mean of the first
and of what the second looks, as it is and mirrored, give on average."""
_DOUBT = 0.15
"""How far under the least score, or half of it, a detection may be to be looked at again."""
_AGAIN_AT, _VIEW, _VIEWS = 24.0, 96, 4
"""Side in pixels of a face that is looked at again, of the images, and how many are at a time."""
_OVERLAP = 256
"""Of tiles, in pixels."""
_SAME = 0.4
"""Overlap of boxes above which they are one face."""


class FaceDetector:
    """Faces of any size, also turned or tilted, by a small network; satisfies `Detector`.

    Several threads may call one detector at a time.
    """

    takes_min_face = True

    def __init__(self, *, min_face: float | None = None, min_score: float = MIN_SCORE) -> None:
        """Load the network, once a process.

        Args:
            min_face: Side in pixels of the smallest face searched for; a 36th of the image's longer
                side if not given. The image is reduced accordingly.
            min_score: Least score of a face, 0 to 1: about the overlap that its box has.

        Raises:
            DetectorError: `min_face` is no size, or `min_score` no score.
            ModelFileError: the weights that belong to jclnf are missing or damaged.
        """
        if not 0 < min_score < 1:
            raise DetectorError(f"min_score is {min_score!r}; give a number between 0 and 1")
        self.min_face = check_min_face(min_face)
        self.min_score = min_score
        _arrays()

    def __call__(self, image: np.ndarray, /, *, min_face: float | None = None) -> np.ndarray:
        """Return the boxes of all faces, the largest first; see `Detector`."""
        return self.detect(image, min_face)[0]

    def detect(
        self, grey: np.ndarray, min_face: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes, the largest first, and the score of each.

        Args:
            grey: `(h, w)` uint8, upright.
            min_face: in place of the detector's own.

        Returns:
            boxes: `(k, 4)` float64, x, y, w, h of the face outline in pixels of `grey`.
            scores: `(k,)` float64, `min_score` to 1.

        Raises:
            ImageError: `grey` is not of that shape and type.
        """
        return self.detect_batch(check_image(grey, colour=False)[None], min_face)[0]

    def detect_batch(
        self, images: np.ndarray, min_face: float | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return what `detect` does for each of several images of one size, `(b, h, w)` uint8,
        which are looked at together. A program is compiled for each number of images."""
        check_process()
        for grey in images:
            check_image(grey, colour=False)
        shape = images.shape[1:]
        least = smallest_face(shape, check_min_face(min_face), self.min_face)
        found: list[list[np.ndarray]] = [[] for _ in images]
        doubtful = max(self.min_score - _DOUBT, self.min_score / 2)
        reductions = _reductions(max(shape), least)
        for level, factor in enumerate(reductions):
            smallest = _AGAIN if level > 0 else 0.0
            largest = _LARGEST if level + 1 < len(reductions) else np.inf
            copies, (down, across) = _reduced(images, factor)
            for (top, left), canvas in _tiles(copies):
                answers = np.asarray(_seen(_weights(), canvas), np.float64)
                for of_image, answer in zip(found, answers, strict=True):
                    sides = answer[:, 2:4].max(axis=1)
                    right = (sides >= smallest) & (sides <= largest)
                    boxes = answer[right & (answer[:, 4] >= doubtful)]
                    boxes[:, :2] += (left, top)
                    # Pixel centres are at integers, so a reduced image's are half a pixel in.
                    boxes[:, :2] = (boxes[:, :2] + 0.5) * (across, down) - 0.5
                    boxes[:, 2:4] *= (across, down)
                    of_image.append(boxes)
        every = [_distinct(np.concatenate(boxes), shape, least) for boxes in found]
        _reconsider(images, every)
        right = [rows[rows[:, 4] >= self.min_score] for rows in every]
        return [(rows[:, :4], rows[:, 4]) for rows in right]


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
    """The network's arrays as they are in its file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = bundled_file("detector/faces.safetensors")
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as e:
        raise ModelFileError(path, f"the face detector's weights cannot be read: {e}") from e
    if problem := check_weights(arrays, SHAPES):
        raise ModelFileError(path, f"is not the face detector's: {problem}")
    return arrays


@functools.cache
def _weights() -> dict[str, Array]:
    """The same for JAX, in single precision; made when a device has been chosen."""
    return {name: to_device(array, jnp.float32) for name, array in _arrays().items()}


@jax.jit
def _seen(weights: dict[str, Array], images: Any) -> Any:
    return kept(_look_at)(weights, images)


def _look_at(
    weights: dict[str, Array], images: UInt8[Array, "b h w"]
) -> Float[Array, "b cells fields"]:
    """For each cell of images a box, x, y, w, h, and its score."""
    h, w = images.shape[1:]
    scores, boxes = boxes_of(look(images, plain_layer(weights)), h, w)
    corner = boxes[..., :2] - boxes[..., 2:] / 2
    chance = jax.nn.sigmoid(scores)[..., None]
    return jnp.concatenate([corner, boxes[..., 2:], chance], axis=-1)


def _reductions(longer: int, least: float) -> list[float]:
    """By which factors an image of a longer side is reduced, so that faces from `least` pixels to
    the largest are of sizes that the network knows."""
    side = max(longer * min(1.0, SMALLEST / least), min(longer, _SIDES[0]))
    # A little smaller is better than padded to the next size.
    sides = [next((s for s in _SIDES if s < side <= 1.03 * s), side)]
    while sides[-1] > _LAST:
        sides.append(max(sides[-1] / _STEP, _SIDES[0]))
    return [longer / each for each in sides]


def _reduced(images: np.ndarray, factor: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Copies of images reduced by about a factor, and by how much in height and width."""
    import cv2

    h, w = images.shape[1:]
    size = max(1, round(w / factor)), max(1, round(h / factor))
    if size == (w, h):
        return images, (1.0, 1.0)
    copies = np.stack([cv2.resize(i, size, interpolation=cv2.INTER_AREA) for i in images])
    return copies, (h / size[1], w / size[0])


def _tiles(images: np.ndarray) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Images padded to one of the sizes that there are, or, of larger ones, tiles that overlap; and
    where each begins, y, x."""
    h, w = images.shape[1:]
    most = _SIDES[-1]
    if max(h, w) > most:
        starts = [_starts(length, most) for length in (h, w)]
        parts = [((y, x), images[:, y : y + most, x : x + most]) for y in starts[0]
                 for x in starts[1]]  # fmt: skip
    else:
        parts = [((0, 0), images)]
    return [(start, _padded(part)) for start, part in parts]


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that cover a length and overlap each other."""
    if length <= tile:
        return [0]
    count = -(-(length - _OVERLAP) // (tile - _OVERLAP))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _padded(images: np.ndarray) -> np.ndarray:
    """Images with zeros to the right and below, of one of the sizes that there are."""
    h, w = images.shape[1:]
    longer = next(side for side in _SIDES if side >= max(h, w))
    shorts = [-(-round(share * longer) // MULTIPLE) * MULTIPLE for share in _SHARES]
    shorter = next(side for side in shorts if side >= min(h, w))
    height, width = (longer, shorter) if h >= w else (shorter, longer)
    if (h, w) == (height, width):
        return images
    padded = np.zeros((len(images), height, width), np.uint8)
    padded[:, :h, :w] = images
    return padded


def _reconsider(images: np.ndarray, found: list[np.ndarray]) -> None:
    """Look once more at the detections `(k, 5)` of each image that are doubtful, and change their
    scores."""
    doubtful = [(i, k) for i, rows in enumerate(found) for k in np.flatnonzero(rows[:, 4] < _SURE)]
    for first in range(0, len(doubtful), _VIEWS):
        some = doubtful[first : first + _VIEWS]
        views = np.zeros((_VIEWS, _VIEW, _VIEW), np.uint8)
        for n, (i, k) in enumerate(some):
            views[n] = _view(images[i], found[i][k, :4])
        both = np.concatenate([views, views[:, :, ::-1]])
        answers = np.asarray(_seen(_weights(), both), np.float64)
        likely = [_in_the_middle(answer) for answer in answers]
        for (i, k), plain, mirrored in zip(some, likely, likely[_VIEWS:], strict=False):
            found[i][k, 4] = (found[i][k, 4] + (plain + mirrored) / 2) / 2


def _in_the_middle(answer: np.ndarray) -> float:
    """The highest score of the boxes `(cells, 5)` of a view that are where its face should be."""
    away = np.abs(answer[:, :2] + answer[:, 2:4] / 2 - (_VIEW - 1) / 2)
    size = np.sqrt(np.maximum(answer[:, 2] * answer[:, 3], 1e-6))
    near = np.all(away < 0.25 * _AGAIN_AT, axis=1)
    near &= np.abs(np.log(size / _AGAIN_AT)) < 0.5
    return float(max(answer[near, 4], default=0.0))


def _view(grey: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What is around a box, `(_VIEW, _VIEW)`, the box in the middle and of `_AGAIN_AT` pixels."""
    import cv2

    zoom = _AGAIN_AT / np.sqrt(box[2] * box[3])
    low = box[:2] + (box[2:] + 1 - _VIEW / zoom) / 2
    start = np.clip(np.floor(low), 0, np.array(grey.shape[::-1]) - 1).astype(int)
    end = np.clip(np.ceil(low + _VIEW / zoom), start + 1, grey.shape[::-1]).astype(int)
    at = np.clip(np.rint((start - low) * zoom), 0, _VIEW - 1).astype(int)
    size = np.clip(np.rint((end - start) * zoom), 1, _VIEW - at).astype(int)
    part = grey[start[1] : end[1], start[0] : end[0]]
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    view = np.zeros((_VIEW, _VIEW), np.uint8)
    view[at[1] : at[1] + size[1], at[0] : at[0] + size[0]] = cv2.resize(
        part, tuple(size.tolist()), interpolation=way
    )
    return view


def _distinct(found: np.ndarray, shape: tuple[int, ...], least: float) -> np.ndarray:
    """The faces in detections `(k, 5)`, the largest first: those in the image that are no smaller
    than `least`, and each once."""
    import cv2

    middle = found[:, :2] + found[:, 2:4] / 2
    keep = np.all((middle >= 0) & (middle <= np.array(shape[::-1]) - 1.0), axis=1)
    found = found[keep & (found[:, 2:4].max(axis=1, initial=0) >= least)]
    if len(found):
        boxes, scores = found[:, :4].tolist(), found[:, 4].tolist()
        found = found[list(cv2.dnn.NMSBoxes(boxes, scores, 0.0, _SAME))]
    return largest_first(found)
