"""Fits from several start rotations, of which the likeliest is kept."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from jclnf.errors import ParamsError
from jclnf.face import check_inputs, finish
from jclnf.fit import fit_from
from jclnf.mapping import map_faces
from jclnf.model import Model
from jclnf.params import FitParams
from jclnf.pdm import pose_from_box
from jclnf.result import FitResult, FitStatus

OPENFACE_ROTATIONS = (
    (0.0, 0.0, 0.0),
    (0.0, -0.5236, 0.0),
    (0.0, 0.5236, 0.0),
    (0.0, -0.96, 0.0),
    (0.0, 0.96, 0.0),
    (0.0, 0.0, 0.5236),
    (0.0, 0.0, -0.5236),
    (0.0, -1.57, 0.0),
    (0.0, 1.57, 0.0),
    (0.0, -1.22, 0.698),
    (0.0, 1.22, -0.698),
)
"""The start rotations (pitch, yaw, roll; radians) that OpenFace tries for a still image."""


def fit_hypotheses(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Any,
    params: FitParams | None = None,
    *,
    rotations: Any = OPENFACE_ROTATIONS,
) -> FitResult:
    """Fit one face from each of several start rotations, and keep the likeliest fit.

    Arguments and errors are those of `jclnf.fit`, with `rotations` (r, 3) Euler angles in radians.
    The starts run as a batch (see `jclnf.mapping`). Which fit is kept is piecewise constant:
    derivatives are those of that fit. One that is not finite is kept only if all are; otherwise
    the likelihood alone decides, as it does in OpenFace: look at the status of what is kept.
    """
    params = model.defaults if params is None else params
    box = check_inputs(model, image, box, params)
    return _fit_hypotheses(model, image, box, rotations_array(rotations), params)


@eqx.filter_jit
def _fit_hypotheses(
    model: Model, image: Any, box: Any, rotations: Any, params: FitParams
) -> FitResult:
    return best_of(model.prepare(params), image, box, rotations, params)


def best_of(model: Model, image: Any, box: Any, rotations: Any, params: FitParams) -> FitResult:
    """What `fit_hypotheses` computes, neither compiled nor checked."""
    dtype = model.pdm.mean.dtype
    box, rotations = jnp.asarray(box, dtype), jnp.asarray(rotations, dtype)

    def start(rotation: Any) -> FitResult:
        pose = pose_from_box(model.pdm, box, rotation)
        return fit_from(model, image, pose, model.pdm.mean_shape(), params)

    fits = map_faces(start, rotations)
    likelihood = jnp.where(fits.status == FitStatus.NOT_FINITE, -math.inf, fits.likelihood)
    best = jnp.argmax(likelihood)
    kept = jax.tree.map(lambda array: array[best], fits)
    return finish(model, image, kept, params)


def rotations_array(rotations: Any) -> Any:
    """Start rotations as an array (r, 3)."""
    array = rotations if isinstance(rotations, jax.Array) else np.asarray(rotations, np.float32)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise ParamsError(f"rotations are of shape (r, 3), not {array.shape}")
    return array
