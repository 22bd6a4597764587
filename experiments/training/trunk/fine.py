"""The fine stage: eyes and mouth seen again, each in a crop of its own from the original image.

The crops are sized and turned as the trunk's landmarks say, and centred on those of the eye or the
mouth. The right eye is seen in the mirror, so one network serves both.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.training.trunk.augment import Example, mirrored, worsened
from experiments.training.trunk.frame import Frame, Similarity, as_complex, cut
from experiments.training.trunk.locate import Landmarks, Trained, in_views
from experiments.training.trunk.network import Network
from jclnf.train._faces import MIRROR_68

LARGEST = 180.0
"""Mean side in pixels of a face that crops are cut from: they are then hardly enlarged."""
DEGREES, SIZE, SHIFT = 3.5, 0.04, 0.0275
"""Standard deviations of how far the trunk's frames are off; the shift in eye distances."""
WIDTHS, BLOCKS, JOINED = (24, 40, 64, 64), (0, 1, 2, 2), 48


class Region(NamedTuple):
    """A part of the face with a network of its own.

    Attributes:
        name: of its file.
        width: of its crop, in eye distances of the mean face.
        side: of its crop in pixels.
        stem: of its network.
        landmarks: which of the 68 it has.
        openings: pairs of its landmarks (by their place among them) whose mean distance is how far
            the eye or the mouth is open.
    """

    name: str
    width: float
    side: int
    stem: int
    landmarks: tuple[int, ...]
    openings: tuple[tuple[int, int], ...]

    @property
    def network(self) -> Network:
        count = len(self.landmarks)
        return Network(WIDTHS, BLOCKS, JOINED, count, openings=self.openings, stem=self.stem)

    def frame(self, mean: np.ndarray) -> Frame:
        """The crop, and where the mean face `(68, 2)` of any size lies in it."""
        size = self.side / (self.width * np.linalg.norm(mean[36] - mean[45]))
        centred = mean - mean[list(self.landmarks)].mean(0)
        return Frame(self.side, centred * size + (self.side - 1) / 2)

    def view(self, points: np.ndarray, frame: Frame) -> Similarity:
        """Sized and turned as all points say, centred on the region's."""
        turn = frame.aligned(points).turn
        centre = as_complex(points[list(self.landmarks)]).mean()
        return Similarity(turn, complex(centre - turn * frame.middle))

    def example(
        self, image: np.ndarray, points: np.ndarray, frame: Frame, rng: np.random.Generator
    ) -> Example:
        """A random crop, of the face or of its mirror image."""
        if rng.random() < 0.5:
            image, points = mirrored(image, points)
        turn = np.exp(complex(rng.normal(0, SIZE), np.deg2rad(rng.normal(0, DEGREES))))
        view = self.view(points, frame)
        eyes = abs(view.turn) * self.side / self.width
        view = view.about(frame.middle, turn, eyes * complex(*rng.normal(0, SHIFT, 2)))
        at = view.inverse()(points[list(self.landmarks)])
        return Example(worsened(cut(image, view, self.side), rng, self.network.stride), at)


EYE = Region("eye", 0.62, 64, 0, tuple(range(36, 42)), ((1, 5), (2, 4)))
MOUTH = Region("mouth", 1.15, 128, 8, tuple(range(48, 68)), ((14, 18),))
REGIONS = (EYE, MOUTH)


def refined(
    region: Region, trained: Trained, images: list[np.ndarray], points: np.ndarray
) -> np.ndarray:
    """Landmarks `(f, 68, 2)` with those of a region (and of its mirror image, if that is another
    one) seen again."""
    index, found = list(region.landmarks), points.copy()
    both = region is EYE
    for flip in (False, True) if both else (False,):
        seen = [mirrored(*pair) if flip else pair for pair in zip(images, found, strict=True)]
        views = [region.view(at, trained.frame) for _, at in seen]
        again, _ = in_views(trained, [image for image, _ in seen], views)
        if flip:
            right = np.array([image.shape[1] - 1.0 for image in images])
            again[..., 0] = right[:, None] - again[..., 0]
        found[:, MIRROR_68[index] if flip else index] = again
    return found


def fine_landmarks(coarse: Landmarks, folder: Path) -> Landmarks:
    """Those of a trunk, with the regions refined whose networks are in a folder."""
    networks = [(r, Trained.load(folder / f"{r.name}.npz")) for r in REGIONS]

    def landmarks(images: list[np.ndarray], boxes: np.ndarray) -> np.ndarray:
        found = coarse(images, boxes)
        for region, trained in networks:
            found = refined(region, trained, images, found)
        return found

    return landmarks
