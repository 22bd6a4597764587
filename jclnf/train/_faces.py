"""Annotated faces as training needs them: small grey images, true points, true poses."""

import dataclasses

import cv2
import numpy as np

from jclnf.train._shape_model import ShapeModel, fit_shapes

LARGEST_FACE = 128.0
"""Mean side in pixels that faces are reduced to if they are larger: the networks see less."""
SURROUNDINGS = 0.8
"""Margin around a face on each side, in mean sides of its landmarks' extent."""

MIRROR_68 = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
)
"""The landmark of the 68-point (iBUG) scheme that each one becomes in a mirrored image."""


@dataclasses.dataclass(frozen=True)
class Faces:
    """`f` faces, packed.

    Attributes:
        images: grey `(h, w)` uint8 around each face, at most `LARGEST_FACE` large.
        points: `(f, n, 2)` true landmarks in pixels of the images.
    """

    images: list[np.ndarray]
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def with_mirrored(self, mirror: np.ndarray) -> "Faces":
        """These faces, then their mirror images."""
        images = [np.ascontiguousarray(image[:, ::-1]) for image in self.images]
        widths = np.array([image.shape[1] for image in images], float)
        flipped = self.points[:, mirror].copy()
        flipped[..., 0] = widths[:, None] - 1 - flipped[..., 0]
        return Faces(self.images + images, np.concatenate([self.points, flipped]))


def cut_out(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surroundings of a face, reduced if they are large, and its points there.

    Args:
        image: `(h, w)` grey 0-255.
        points: `(n, 2)` landmarks in pixels of the image.
    """
    low, high = points.min(0), points.max(0)
    side = float((high - low).mean())
    rows, columns = image.shape
    left, top = np.maximum(np.floor(low - SURROUNDINGS * side), 0).astype(int)
    right, bottom = np.ceil(high + SURROUNDINGS * side).astype(int) + 1
    cropped = image[top : min(bottom, rows), left : min(right, columns)]
    moved = points - [left, top]
    if side > LARGEST_FACE:
        height, width = (max(1, round(n * LARGEST_FACE / side)) for n in cropped.shape)
        zoom = np.array([width / cropped.shape[1], height / cropped.shape[0]])
        cropped = cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA)
        moved = (moved + 0.5) * zoom - 0.5
    return np.clip(np.rint(cropped), 0, 255).astype(np.uint8), moved


@dataclasses.dataclass(frozen=True)
class Posed:
    """Faces with the pose and shape that their points were annotated in.

    Attributes:
        faces: the faces.
        model: the shape model.
        scale, matrix, translation: their poses, `(f,)`, `(f, 3, 3)`, `(f, 2)`.
        latent: `(f, m)` shape parameters in their standard deviations.
    """

    faces: Faces
    model: ShapeModel
    scale: np.ndarray
    matrix: np.ndarray
    translation: np.ndarray
    latent: np.ndarray

    @staticmethod
    def of(faces: Faces, model: ShapeModel) -> "Posed":
        """The faces with the shape model fitted to their true points."""
        poses, latent = fit_shapes(model, faces.points)
        return Posed(faces, model, *poses, latent)
