"""Batches of training examples, made on the host while the device works on earlier ones.

Every example follows from the seed, the epoch and its place in it alone: a run that is resumed
goes on as if it had not been interrupted, whatever the number of threads.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np

from jclnf.experts import TRUNK_SAMPLING
from jclnf.fitting import START_MARGIN, START_SIZE
from jclnf.train._augment import augment
from jclnf.train._faces import Faces, Posed

_TURN = 0.22
"""Standard deviation of turns in the picture, radians."""
_STRETCH = 0.03
"""Standard deviation of stretches, in parts of the length."""

Example = dict[str, np.ndarray]
Maker = Callable[[int, np.random.Generator], Example]
"""Makes an example of the face of an index."""


def batches(
    make: Maker, count: int, size: int, *, seed: int, epoch: int, threads: int = 2, ahead: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """One epoch over `count` faces in random order, in batches of `size` (the rest is left out)."""
    order = np.random.default_rng([seed, epoch]).permutation(count)

    def batch(start: int) -> dict[str, np.ndarray]:
        made = [
            make(int(face), np.random.default_rng([seed, epoch, start + i]))
            for i, face in enumerate(order[start : start + size])
        ]
        return {name: np.stack([example[name] for example in made]) for name in made[0]}

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Any] = deque()
        for start in range(0, count - size + 1, size):
            waiting.append(pool.submit(batch, start))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """By how much a fit's state may be off when a scale begins: standard deviations.

    Attributes:
        turn: pitch, yaw and roll, radians.
        shift: of the position, millimetres.
        zoom: of the logarithm of the scale.
        keep: range of the factor by which shape parameters are shrunk to the mean shape.
        shape: of the shape parameters, in their own standard deviations.
    """

    turn: tuple[float, float, float]
    shift: float
    zoom: float
    keep: tuple[float, float]
    shape: float


COARSE = Disturbance((0.10, 0.13, 0.08), 4.0, 0.045, (0.2, 1.0), 0.4)
FINE = Disturbance((0.06, 0.08, 0.04), 2.2, 0.025, (0.5, 1.0), 0.3)


class State(NamedTuple):
    """Where a fit may stand: head rotation `(3, 3)`, 3D shape `(n, 3)`, landmarks `(n, 2)`."""

    matrix: np.ndarray
    shape: np.ndarray
    landmarks: np.ndarray


def disturbed(posed: Posed, face: int, by: Disturbance, rng: np.random.Generator) -> State:
    """The true state of a face, disturbed: some faces are far off, most are near."""
    model = posed.model
    scale, latent = posed.scale[face], posed.latent[face]
    far = rng.choice([0.4, 1.0, 1.7], p=[0.35, 0.45, 0.2])
    matrix = posed.matrix[face] @ euler_matrix(far * rng.normal(size=3) * by.turn)
    translation = posed.translation[face] + far * scale * rng.normal(0, by.shift, 2)
    scale = scale * np.exp(far * rng.normal(0, by.zoom))
    latent = latent * rng.uniform(*by.keep) + far * rng.normal(0, by.shape, latent.shape)
    shape = model.mean + model.components @ (latent * np.sqrt(model.eigenvalues))
    return State(matrix, shape, scale * shape @ matrix[:2].T + translation)


@dataclasses.dataclass(frozen=True)
class TrunkExamples:
    """Makes the pictures that a trunk sees, and where the landmarks are on its maps.

    Attributes:
        posed: the faces.
        scaling: cells per millimetre.
        grid: side of the maps in cells.
        middle: centre of the maps from the landmarks' centroid, millimetres.
        disturbance: how far from the truth the maps are placed.
    """

    posed: Posed
    scaling: float
    grid: int
    middle: tuple[float, float]
    disturbance: Disturbance

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`picture` (side, side) uint8 of TRUNK_SAMPLING grid, `points` (n, 2) in map cells."""
        posed = self.posed
        state = disturbed(posed, face, self.disturbance, rng)
        base = state.landmarks
        to_cells = similarity(base, self.scaling * state.shape[:, :2])
        middle = self.scaling * np.asarray(self.middle)
        centroid = base.mean(0)
        to_image = np.linalg.inv(to_cells)
        picture = warped(
            posed.faces.pictures[face],
            centroid + to_image @ middle,
            to_image / TRUNK_SAMPLING,
            TRUNK_SAMPLING * self.grid,
        )
        truth = posed.faces.points[face]
        points = (truth - centroid) @ to_cells.T - middle + (self.grid - 1) / 2
        return {
            "picture": augment(picture, rng),
            "points": points.astype(np.float32),
        }


@dataclasses.dataclass(frozen=True)
class BoxExamples:
    """Makes pictures of faces with their boxes, as the learned start or a whole fit sees them.

    Attributes:
        faces: the faces.
        size: side of the pictures in pixels.
        margin: side of the pictures in mean sides of the box: a range to draw from.
        changed: whether pictures are turned and augmented.
        inexact: whether boxes are made inexact.
    """

    faces: Faces
    size: int = START_SIZE
    margin: tuple[float, float] = (START_MARGIN, START_MARGIN)
    changed: bool = True
    inexact: bool = True

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`picture` (size, size) uint8, `box` (4,) and `points` (n, 2) in its pixels."""
        points = self.faces.points[face]
        change = _turned_and_stretched(rng) if self.changed else np.eye(2)
        moved = points @ change.T
        low, high = moved.min(0), moved.max(0)
        extent = high - low
        # Boxes of other sources are tight in their own way: to the lower right, or larger.
        low = low + 0.008 * extent.mean()
        if self.inexact:
            far = rng.choice([1.0, 2.2], p=[0.7, 0.3])
            extent = extent * np.exp(far * rng.normal(0, 0.05, 2))
            low = low + far * rng.normal(0, 0.03, 2) * extent
        step = rng.uniform(*self.margin) * extent.mean() / self.size
        centre = low + extent / 2
        back = np.linalg.inv(change)
        picture = warped(self.faces.pictures[face], back @ centre, step * back, self.size)
        corner = (self.size - 1) / 2 - extent / step / 2
        return {
            "picture": augment(picture, rng) if self.changed else picture,
            "box": np.concatenate([corner, extent / step]).astype(np.float32),
            "points": ((moved - centre) / step + (self.size - 1) / 2).astype(np.float32),
        }


def _turned_and_stretched(rng: np.random.Generator) -> np.ndarray:
    """A random linear map `(2, 2)`: a turn in the picture, and a little stretch along some axes,
    as if it were another person's face."""
    angle = rng.normal(0, _TURN)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    a, b = rng.normal(0, _STRETCH, 2)
    return turn @ np.array([[1 + a, b], [b, 1 - a]])


def euler_matrix(euler: np.ndarray) -> np.ndarray:
    """`Rx Ry Rz` of three Euler angles, as `jclnf.geometry.euler_to_matrix`."""
    (a, b, c), (d, e, f) = np.cos(euler), np.sin(euler)
    rx = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    ry = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    rz = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return rx @ ry @ rz


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 2x2 matrix of `jclnf.geometry.similarity_between`."""
    source, target = source - source.mean(0), target - target.mean(0)
    cosine = (source * target).sum()
    sine = (source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]).sum()
    size = np.sqrt((target**2).sum() / (source**2).sum()) / np.hypot(cosine, sine)
    a, b = size * cosine, size * sine
    return np.array([[a, -b], [b, a]])


def warped(
    picture: np.ndarray, centre: np.ndarray, to_picture: np.ndarray, size: int
) -> np.ndarray:
    """What `jclnf.geometry.sample_square` reads, nearly: reduced by powers of two where it is
    large."""
    step = np.sqrt(abs(np.linalg.det(to_picture)))
    while step > 1.5:
        rows, columns = (n // 2 * 2 for n in picture.shape)
        picture = cv2.resize(
            picture[:rows, :columns], (columns // 2, rows // 2), interpolation=cv2.INTER_AREA
        )
        centre, to_picture, step = (centre - 0.5) / 2, to_picture / 2, step / 2
    offset = centre - to_picture @ np.full(2, (size - 1) / 2)
    matrix = np.concatenate([to_picture, offset[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (size, size), flags=flags)
