"""Examples for training: images of faces as the networks and whole fits see them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from jclnf.experts import TRUNK_SAMPLING
from jclnf.fitting import START_MARGIN, START_SIZE
from jclnf.geometry import similarity_between, similarity_matrix
from jclnf.train._augment import augment
from jclnf.train._faces import Faces, Posed

FIT_SIZE = 160
"""Side in pixels of the images that whole fits are trained on."""
FIT_MARGIN = (1.8, 3.2)
"""Their side in mean sides of the box: faces are 50 to 90 px large, as in video."""
TURN = 0.22
"""Standard deviation of turns in the image, radians."""
_STRETCH = 0.03
"""Standard deviation of stretches, in parts of the length."""

Example = dict[str, Any]
"""NumPy arrays by their names."""
Batch = dict[str, Any]
"""Stacked examples on a device, or one of them within `jax.vmap`."""


@runtime_checkable
class Examples(Protocol):
    """Makes an example of each of some faces."""

    def __len__(self) -> int:
        """Number of faces."""
        ...

    def __call__(self, face: int, rng: np.random.Generator, /) -> Example:
        """An example of the face of an index; what is random in it comes from `rng`."""
        ...


def stacked(examples: Sequence[Example]) -> Example:
    """Examples as arrays with an axis for them."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclasses.dataclass(frozen=True)
class Perturbation:
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


COARSE = Perturbation((0.10, 0.13, 0.08), 4.0, 0.045, (0.2, 1.0), 0.4)
FINE = Perturbation((0.06, 0.08, 0.04), 2.2, 0.025, (0.5, 1.0), 0.3)


class State(NamedTuple):
    """Where a fit may stand: head rotation `(3, 3)`, 3D shape `(n, 3)`, landmarks `(n, 2)`."""

    matrix: np.ndarray
    shape: np.ndarray
    landmarks: np.ndarray


def perturbed(posed: Posed, face: int, by: Perturbation, rng: np.random.Generator) -> State:
    """The true state of a face, perturbed: some faces are far off, most are near."""
    model = posed.model
    scale, latent = posed.scale[face], posed.latent[face]
    far = rng.choice([0.4, 1.0, 1.7], p=[0.35, 0.45, 0.2])
    matrix = posed.matrix[face] @ rotation(far * rng.normal(size=3) * by.turn)
    translation = posed.translation[face] + far * scale * rng.normal(0, by.shift, 2)
    scale = scale * np.exp(far * rng.normal(0, by.zoom))
    latent = latent * rng.uniform(*by.keep) + far * rng.normal(0, by.shape, latent.shape)
    shape = model.mean + model.components @ (latent * np.sqrt(model.eigenvalues))
    return State(matrix, shape, scale * shape @ matrix[:2].T + translation)


@dataclasses.dataclass(frozen=True)
class TrunkExamples:
    """Makes the images that a trunk sees, and where the landmarks are on its maps.

    Attributes:
        posed: the faces.
        scaling: cells per millimetre.
        grid: side of the maps in cells.
        middle: centre of the maps from the landmarks' centroid, millimetres.
        perturbation: how far from the truth the maps are placed.
    """

    posed: Posed
    scaling: float
    grid: int
    middle: tuple[float, float]
    perturbation: Perturbation

    def __len__(self) -> int:
        return len(self.posed.faces)

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`image` (side, side) uint8 of TRUNK_SAMPLING grid, `points` (n, 2) in map cells."""
        posed = self.posed
        state = perturbed(posed, face, self.perturbation, rng)
        base = state.landmarks
        to_cells = similarity_matrix(similarity_between(base, self.scaling * state.shape[:, :2]))
        middle = self.scaling * np.asarray(self.middle)
        centroid = base.mean(0)
        to_image = np.linalg.inv(to_cells)
        image = warped(
            posed.faces.images[face],
            centroid + to_image @ middle,
            to_image / TRUNK_SAMPLING,
            TRUNK_SAMPLING * self.grid,
        )
        truth = posed.faces.points[face]
        points = (truth - centroid) @ to_cells.T - middle + (self.grid - 1) / 2
        return {"image": augment(image, rng), "points": points.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class BoxExamples:
    """Makes images of faces with their boxes, as the learned start or a whole fit sees them.

    Attributes:
        faces: the faces.
        size: side of the images in pixels.
        margin: side of the images in mean sides of the box: a range to draw from.
        changed: whether images are turned and augmented.
        inexact: whether boxes are made inexact.
        turn: standard deviation of turns in the image, radians.
    """

    faces: Faces
    size: int = START_SIZE
    margin: tuple[float, float] = (START_MARGIN, START_MARGIN)
    changed: bool = True
    inexact: bool = True
    turn: float = TURN

    @staticmethod
    def of_fits(faces: Faces, *, changed: bool = True) -> "BoxExamples":
        """Images that whole fits are trained on."""
        return BoxExamples(faces, FIT_SIZE, FIT_MARGIN, changed)

    def __len__(self) -> int:
        return len(self.faces)

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`image` (size, size) uint8, `box` (4,) and `points` (n, 2) in its pixels."""
        points = self.faces.points[face]
        change = _turn_and_stretch(rng, self.turn) if self.changed else np.eye(2)
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
        image = warped(self.faces.images[face], back @ centre, step * back, self.size)
        corner = (self.size - 1) / 2 - extent / step / 2
        return {
            "image": augment(image, rng) if self.changed else image,
            "box": np.concatenate([corner, extent / step]).astype(np.float32),
            "points": ((moved - centre) / step + (self.size - 1) / 2).astype(np.float32),
        }


def _turn_and_stretch(rng: np.random.Generator, deviation: float) -> np.ndarray:
    """A random linear map `(2, 2)`: a turn in the image, and a little stretch along some axes, as
    if it were another person's face."""
    turned = turn(rng.normal(0, deviation))
    a, b = rng.normal(0, _STRETCH, 2)
    return turned @ np.array([[1 + a, b], [b, 1 - a]])


def rotation(euler: np.ndarray) -> np.ndarray:
    """`Rx Ry Rz` of three Euler angles, as `jclnf.geometry.euler_to_matrix`."""
    return np.asarray(Rotation.from_euler("XYZ", euler).as_matrix())


def turn(angle: float) -> np.ndarray:
    """The turn `(2, 2)` of the image by an angle in radians."""
    return rotation(np.array([0.0, 0.0, angle]))[:2, :2]


def warped(image: np.ndarray, centre: np.ndarray, to_image: np.ndarray, size: int) -> np.ndarray:
    """Nearly as `jclnf.geometry.sample_square` reads, for any linear map `to_image` (2, 2): reduced
    by powers of two where steps are large."""
    step = np.sqrt(abs(np.linalg.det(to_image)))
    while step > 1.5:
        rows, columns = (n // 2 * 2 for n in image.shape)
        image = cv2.resize(
            image[:rows, :columns], (columns // 2, rows // 2), interpolation=cv2.INTER_AREA
        )
        centre, to_image, step = (centre - 0.5) / 2, to_image / 2, step / 2
    offset = centre - to_image @ np.full(2, (size - 1) / 2)
    matrix = np.concatenate([to_image, offset[:, None]], axis=1)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags)
