"""The last step of a training: a shape model to read landmarks off by, see
`jclnf.fitting.read_off`."""

import dataclasses

import numpy as np

from jclnf.fitting import Model
from jclnf.geometry import PDM
from jclnf.train._examples import BoxExamples
from jclnf.train._faces import Faces
from jclnf.train._validation import fit_each, map_chunks

RIDGE = 0.1
"""Shrinks the regression on shape parameters, in parts of the number of faces."""
FEWEST = 100.0
"""Shrinks all of it where there are not many more faces than this."""


def learn_readout(model: Model, faces: Faces) -> Model:
    """The model with a shape model to read landmarks off by.

    The distance from fit to annotation, turned into the head's frame, is regressed on the shape
    parameters of the fit; that is added to the mean shape and the modes, in x and y. Images are as
    they were annotated, from inexact boxes. Give it no mirror images: what an annotation does to
    the left and to the right need not be the same, and this is where a model can follow it.

    Args:
        model: a trained model.
        faces: the faces to learn from.
    """
    model = dataclasses.replace(model, readout=None)
    make = BoxExamples.of_fits(faces, changed=False)
    examples = [make(face, np.random.default_rng([face, 1])) for face in range(len(make))]
    fits = map_chunks(fit_each, model, examples)
    residuals = np.stack([example["points"] for example in examples]) - fits.landmarks
    in_head = np.einsum("fnc,fcd->fnd", residuals, fits.pose.matrix[:, :2, :2])
    apart = in_head / fits.pose.scale[:, None, None]
    latent = np.asarray(fits.shape) / np.sqrt(np.asarray(model.pdm.eigenvalues))
    return dataclasses.replace(model, readout=regressed(model.pdm, apart, latent))


def regressed(pdm: PDM, apart: np.ndarray, latent: np.ndarray) -> PDM:
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
