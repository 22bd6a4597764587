"""A face whose landmarks are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclnf.errors import AnnotationError


@dataclass(frozen=True, eq=False)
class AnnotatedFace:
    """A face whose landmarks are known.

    Attributes:
        image: The image's file.
        landmarks: `(n, 2)` float64 pixels of the image as `jclnf.images.read_image` gives it, pixel
            centres at integers from 0.
        box: `(4,)` float64: x, y, w, h in pixels as annotated, or None.
        identity: Whose face it is; empty if that is not known.
        split: Name of the part of the data set that it belongs to; empty if there is none.
    """

    image: Path
    landmarks: np.ndarray
    box: np.ndarray | None = None
    identity: str = ""
    split: str = ""


def split_by_identity(
    faces: Sequence[AnnotatedFace], fraction: float, seed: int
) -> tuple[list[AnnotatedFace], list[AnnotatedFace]]:
    """Hold out some identities, with all their faces: images of one person are alike.

    Faces without an identity are one person if they are in the same image. Which identities are
    held out depends on which there are and on the seed, not on the order of the faces.

    Args:
        faces: at least two identities.
        fraction: part of the identities to hold out, over 0 and under 1; rounded to a whole number
            of them that leaves some on both sides.
        seed: of the random choice.

    Returns:
        The faces to train on and those held out, both in the given order.

    Raises:
        AnnotationError: a fraction out of range, or fewer than two identities.
    """
    if not 0 < fraction < 1:
        raise AnnotationError(f"fraction is {fraction}; it must be over 0 and under 1")
    keys = [(face.identity, "" if face.identity else str(face.image)) for face in faces]
    identities = sorted(set(keys))
    if len(identities) < 2:
        raise AnnotationError(f"{len(identities)} identities cannot be split")
    count = min(max(1, round(fraction * len(identities))), len(identities) - 1)
    chosen = np.random.default_rng(seed).permutation(len(identities))[:count]
    held = {identities[i] for i in chosen}
    train = [face for face, key in zip(faces, keys, strict=True) if key not in held]
    return train, [face for face, key in zip(faces, keys, strict=True) if key in held]
