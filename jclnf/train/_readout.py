"""The last step of a training: a shape model to read landmarks off by, see
`fitting/_readout.py`."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jclnf.fitting import Model
from jclnf.geometry import PDM
from jclnf.train._batches import BoxExamples
from jclnf.train._faces import Faces
from jclnf.train._measure import fitted

RIDGE = 0.1
"""Shrinks the regression on shape parameters, in parts of the number of faces."""
FEWEST = 100.0
"""Shrinks all of it where there are not many more faces than this."""
_CHUNK = 32


def learn_readout(model: Model, faces: Faces, size: int, margin: tuple[float, float]) -> Model:
    """The model with a shape model to read landmarks off by.

    The distance from fit to annotation, turned into the head's frame, is regressed on the shape
    parameters of the fit; that is added to the mean shape and the modes, in x and y. Pictures are
    as they were annotated, from inexact boxes. Give it no mirror images: what an annotation does
    to the left and to the right need not be the same, and this is where a model can follow it.

    Args:
        model: a trained model.
        faces: the faces to learn from.
        size, margin: of the pictures that are fitted, see `BoxExamples`.
    """
    model = dataclasses.replace(model, readout=None)
    make = BoxExamples(faces, size, margin, changed=False)
    apart, latent = [], []
    for first in range(0, len(faces), _CHUNK):
        several = range(first, min(first + _CHUNK, len(faces)))
        made = [make(face, np.random.default_rng([face, 1])) for face in several]
        pictures, boxes, points = (
            np.stack([example[key] for example in made]) for key in ("picture", "box", "points")
        )
        result = fitted(model, pictures, boxes)
        matrix, scale = np.asarray(result.pose.matrix), np.asarray(result.pose.scale)
        residual = points - np.asarray(result.landmarks)
        in_head = np.einsum("fnc,fcd->fnd", residual, matrix[:, :2, :2])
        apart.append(in_head / scale[:, None, None])
        latent.append(np.asarray(result.shape / jnp.sqrt(model.pdm.eigenvalues)))
    readout = moved(model.pdm, np.concatenate(apart), np.concatenate(latent))
    return dataclasses.replace(model, readout=readout)


def moved(pdm: PDM, apart: np.ndarray, latent: np.ndarray) -> PDM:
    """A shape model with its mean and modes moved by a ridge regression.

    Args:
        pdm: the shape model.
        apart: `(f, n, 2)` millimetres from fit to annotation, in the head's x and y.
        latent: `(f, m)` shape parameters of the fits in their standard deviations.
    """
    count, n, _ = apart.shape
    features = np.concatenate([np.ones((count, 1)), latent], axis=1)
    shrunk = RIDGE * count * np.array([0.0, *np.ones(latent.shape[1])]) + FEWEST
    # A few faces are annotated wrongly: none counts for much more than the others.
    limit = 4 * np.median(np.abs(apart), axis=0)
    target = np.clip(apart, -limit, limit).reshape(count, -1)
    moves = np.linalg.solve(features.T @ features + np.diag(shrunk), features.T @ target)
    moves = moves.reshape(-1, n, 2)
    deviations = np.sqrt(np.asarray(pdm.eigenvalues, np.float64))
    mean = pdm.mean.at[:, :2].add(moves[0].astype(np.float32))
    by_mode = np.moveaxis(moves[1:], 0, -1) / deviations
    components = pdm.components.at[:, :2].add(by_mode.astype(np.float32))
    return PDM(mean, components, pdm.eigenvalues)
