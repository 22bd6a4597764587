"""The photographs: which are learned from, which are held out, and small grey copies of them."""

import dataclasses
import re
import zlib
from pathlib import Path

import cv2
import numpy as np

from experiments.common import DATA
from jclnf.annotations import BoxTable, read_annotations
from jclnf.geometry import tight_box
from jclnf.images import read_image

HELD_OUT = 12
"""One photograph in so many of the training split is held out."""
SURROUNDINGS = 0.75
"""Margin around a face on each side, in mean sides of its landmarks' extent."""


@dataclasses.dataclass(frozen=True)
class Faces:
    """`f` faces: names, grey images `(h, w)` uint8, `(f, 68, 2)` points and `(f, 4)` boxes."""

    names: list[str]
    images: list[np.ndarray]
    points: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def held_out(name: str) -> bool:
    """Whether a face of the training split is held out: decided by its photograph's name, so that
    all faces of one photograph (AFW has several) are on one side."""
    photograph = Path(name).stem
    if photograph.startswith("afw_"):
        photograph = re.sub(r"_\d+$", "", photograph)
    return zlib.crc32(photograph.encode()) % HELD_OUT == 0


def read_faces(part: str, largest: float | None = None, folder: Path | None = None) -> Faces:
    """The faces of one part.

    Args:
        part: "train", "held out" (both of the training split) or "test".
        largest: mean side in pixels of a face, which images are cut out and reduced to; whole
            photographs if not given.
        folder: of the photographs.
    """
    folder = DATA / "photographs" if folder is None else folder
    split = "test" if part == "test" else "train"
    annotated = read_annotations(folder / "landmarks.csv", split=split)
    if part != "test":
        annotated = [face for face in annotated if held_out(face.image.name) == (part != "train")]
    names = [face.image.name for face in annotated]
    points = np.array([face.landmarks for face in annotated])
    images = [read_image(face.image) for face in annotated]
    if part == "test":
        table = BoxTable(folder / "test_boxes.csv")
        boxes = np.array([table.boxes(face.image)[0] for face in annotated])
    else:
        # As those of the test were made, from each face's own random numbers.
        boxes = np.array([_jittered(name, p) for name, p in zip(names, points, strict=True)])
    if largest is None:
        return Faces(names, images, points, boxes)
    crops = [_cut_out(i, p, b, largest) for i, p, b in zip(images, points, boxes, strict=True)]
    return Faces(names, [p[0] for p in crops], *(np.array([p[k] for p in crops]) for k in (1, 2)))


def _jittered(name: str, points: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    box = tight_box(points)
    corner = box[:2] + rng.normal(0, 0.03, 2) * box[2:]
    return np.concatenate([corner, box[2:] * np.exp(rng.normal(0, 0.05))])


def _cut_out(
    image: np.ndarray, points: np.ndarray, box: np.ndarray, largest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = points.min(0), points.max(0)
    side = float((high - low).mean())
    left, top = np.maximum(np.floor(low - SURROUNDINGS * side), 0).astype(int)
    right, bottom = np.ceil(high + SURROUNDINGS * side).astype(int) + 1
    crop = np.ascontiguousarray(image[top:bottom, left:right])
    zoom = np.ones(2)
    if side > largest:
        height, width = (max(1, round(n * largest / side)) for n in crop.shape)
        zoom = np.array([width / crop.shape[1], height / crop.shape[0]])
        crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
    corner = (box[:2] - [left, top] + 0.5) * zoom - 0.5
    return (
        crop,
        (points - [left, top] + 0.5) * zoom - 0.5,
        np.concatenate([corner, box[2:] * zoom]),
    )
