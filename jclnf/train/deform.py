"""Faces of other people, made of those that there are: pictures bent to other shapes."""

from typing import NamedTuple

import cv2
import numpy as np

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
"""Part of the faces that `perhaps_deformed` changes."""
STRENGTHS = (0.2, 0.8)
"""By how much it does, at least and at most."""


class Deformed(NamedTuple):
    """A face, bent or not: its picture, landmarks `(n, 2)` there, and shape parameters `(m,)` in
    their standard deviations."""

    picture: np.ndarray
    points: np.ndarray
    latent: np.ndarray


def perhaps_deformed(posed: Posed, face: int, rng: np.random.Generator) -> Deformed:
    """A face as it is, or bent by a random `STRENGTHS`."""
    if rng.random() < PART:
        return deformed(posed, face, rng.uniform(*STRENGTHS), rng)
    faces = posed.faces
    return Deformed(faces.pictures[face], faces.points[face], posed.latent[face])


def deformed(posed: Posed, face: int, strength: float, rng: np.random.Generator) -> Deformed:
    """A face's picture bent to another shape of the shape model, and its landmarks there.

    The bend is a sum of Gaussians at the landmarks that takes each one to where the changed shape
    has it, and nothing far from the face: Bookstein, "Principal warps" (PAMI 1989), with a
    function of limited reach.

    Args:
        posed: the faces.
        face: which one.
        strength: standard deviation of the change of each shape parameter, in its own.

    Returns:
        The face; its picture is as large as it was.
    """
    picture, points = posed.faces.pictures[face], posed.faces.points[face]
    model = posed.model
    change = strength * rng.normal(size=len(model.eigenvalues))
    displacement = model.components @ (change * np.sqrt(model.eigenvalues))
    move = posed.scale[face] * displacement @ posed.matrix[face][:2].T
    size = float(np.sqrt(np.ptp(points, axis=0).prod()))
    farthest = np.linalg.norm(move, axis=1).max()
    part = min(1.0, LARGEST * size / max(farthest, 1e-6))
    move = part * move
    target = points + move
    values = _bumps(target, target, REACH * size)
    weights = np.linalg.solve(values + SLACK * np.eye(len(target)), -move)

    height, width = picture.shape[:2]
    columns, rows = np.linspace(0, width - 1, NODES), np.linspace(0, height - 1, NODES)
    nodes = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    bend = _bumps(nodes, target, REACH * size) @ weights
    bend = bend.reshape(NODES, NODES, 2).astype(np.float32)
    matrix = np.array([[(NODES - 1) / (width - 1), 0, 0], [0, (NODES - 1) / (height - 1), 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    dense = cv2.warpAffine(
        bend, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    at = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    at += dense
    bent = cv2.remap(picture, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    for _ in range(3):
        # Where a landmark has come to is the point whose bend leads back to it.
        target = points - _bumps(target, points + move, REACH * size) @ weights
    return Deformed(bent, target, posed.latent[face] + part * change)


def _bumps(at: np.ndarray, centres: np.ndarray, reach: float) -> np.ndarray:
    """Values at points `(p, 2)` of Gaussians around centres `(c, 2)`: `(p, c)`."""
    squares = (at**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * at @ centres.T
    return np.exp(-np.maximum(squares, 0.0) / (2 * reach**2))
