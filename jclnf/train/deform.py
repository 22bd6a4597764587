"""Faces of other people, made of those that there are: bent to other shapes, in other greys."""

from typing import NamedTuple

import cv2
import numpy as np

from jclnf.train.augment import grey
from jclnf.train.faces import Posed

REACH = 0.22
"""Standard deviation of the bending functions, in sizes of the face."""
SLACK = 0.05
"""Added to the functions' matrix of values at the landmarks (1 at its own): smooths the bend."""
NODES = 28
"""Nodes along each side of the grid that the bend is computed on."""
LARGEST = 0.08
"""Farthest that a landmark is moved, in sizes of the face: farther, the picture would fold."""
PART = 0.6
"""Part of the faces that `changed` bends."""
STRENGTHS = (0.2, 0.8)
"""By how much it does, at least and at most."""


class Shown(NamedTuple):
    """A face as it is shown in training: a grey picture, landmarks `(n, 2)` there, and shape
    parameters `(m,)` in their standard deviations."""

    picture: np.ndarray
    points: np.ndarray
    latent: np.ndarray


def unchanged(posed: Posed, face: int) -> Shown:
    """A face as it is."""
    picture = grey(posed.faces.pictures[face])
    return Shown(picture, posed.faces.points[face], posed.latent[face])


def changed(posed: Posed, face: int, rng: np.random.Generator) -> Shown:
    """A face in a random mixture of colours, perhaps bent by a random strength."""
    picture = grey(posed.faces.pictures[face], rng)
    shown = Shown(picture, posed.faces.points[face], posed.latent[face])
    return bent(posed, face, shown, rng.uniform(*STRENGTHS), rng) if rng.random() < PART else shown


def bent(posed: Posed, face: int, shown: Shown, strength: float, rng: np.random.Generator) -> Shown:
    """A face bent to another shape of the shape model.

    The bend is a sum of Gaussians at the landmarks that takes each one nearly to where the changed
    shape has it, and nothing far from the face: as Bookstein, "Principal warps" (PAMI 1989), with
    functions of limited reach.

    Args:
        posed, face: the pose and the shape model to bend it by.
        shown: the face as it was.
        strength: standard deviation of the change of each shape parameter, in its own.
    """
    model, points = posed.model, shown.points
    change = strength * rng.normal(size=len(model.eigenvalues))
    displacement = model.components @ (change * np.sqrt(model.eigenvalues))
    move = posed.scale[face] * displacement @ posed.matrix[face][:2].T
    size = float(np.sqrt(np.ptp(points, axis=0).prod()))
    farthest = np.linalg.norm(move, axis=1).max()
    part = min(1.0, LARGEST * size / max(farthest, 1e-6))
    centres, reach = points + part * move, REACH * size
    values = _bumps(centres[:, None, 0] - centres[:, 0], reach)
    values *= _bumps(centres[:, None, 1] - centres[:, 1], reach)
    # To where in the picture each pixel of the bent one looks: back.
    weights = np.linalg.solve(values + SLACK * np.eye(len(centres)), -part * move)

    height, width = shown.picture.shape
    columns, rows = np.linspace(0, width - 1, NODES), np.linspace(0, height - 1, NODES)
    along_x, along_y = (
        _bumps(nodes[:, None] - c, reach)
        for nodes, c in zip((columns, rows), centres.T, strict=True)
    )
    bend = np.stack([along_y * w @ along_x.T for w in weights.T], axis=-1)
    looks = (bend + np.stack(np.meshgrid(columns, rows), axis=-1)).astype(np.float32)
    to_nodes = np.array([[(NODES - 1) / (width - 1), 0, 0], [0, (NODES - 1) / (height - 1), 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    looks = cv2.warpAffine(
        looks, to_nodes, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    picture = cv2.remap(shown.picture, looks[..., 0], looks[..., 1], cv2.INTER_LINEAR)
    moved = centres
    for _ in range(3):
        # Where a landmark has come to is the point that looks back to it.
        at = _bumps(moved[:, None, 0] - centres[:, 0], reach)
        at *= _bumps(moved[:, None, 1] - centres[:, 1], reach)
        moved = points - at @ weights
    return Shown(picture, moved, shown.latent + part * change)


def _bumps(distances: np.ndarray, reach: float) -> np.ndarray:
    """A Gaussian of the distances along one axis."""
    return np.exp(-(distances**2) / (2 * reach**2))
