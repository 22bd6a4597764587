"""Fits from one start or several, of which the likeliest is kept."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jclnf.errors import ParamsError
from jclnf.fitting._mapping import map_faces
from jclnf.fitting._model import Model
from jclnf.fitting._postprocess import postprocess
from jclnf.fitting._result import FitResult, FitStatus
from jclnf.fitting._scales import fit_from
from jclnf.geometry import Pose, pose_from_box
from jclnf.params import FitParams, as_dtype, as_rotations

Init = Float[Array, "r 3"] | Float[np.ndarray, "r 3"] | tuple[Pose, Float[Array, "*b m"]] | None
"""Start rotations, a pose and shape, or the model's own start."""


def as_init(model: Model, init: Any, params: FitParams) -> Init:
    """The start that `jclnf.fit` is asked for, checked.

    Raises:
        ParamsError: it is none of those that `jclnf.fit` lists.
    """
    if init is None:
        return params.rotations
    if not (isinstance(init, tuple) and len(init) == 2 and isinstance(init[0], Pose)):
        return as_rotations(init)
    pose, shape = init
    if jnp.shape(shape) != (*jnp.shape(pose.scale), model.pdm.n_modes):
        raise ParamsError(
            f"init has a shape of {jnp.shape(shape)}; the model has {model.pdm.n_modes} modes"
        )
    start: Init = as_dtype((pose, jnp.asarray(shape)), model.pdm.mean.dtype)
    return start


def initial_state(
    model: Model, image: Real[Array, "h w"] | np.ndarray, box: Any
) -> tuple[Pose, Float[Array, " m"]]:
    """The pose and shape of the model's learned start or, where it has none, of the frontal mean
    shape in the box."""
    box = jnp.asarray(box, model.pdm.mean.dtype)
    if model.start is not None:
        return model.start(model.pdm, jnp.asarray(image), box)
    return pose_from_box(model.pdm, box, jnp.zeros_like(box[:3])), model.pdm.mean_shape()


def fit_face(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Any,
    init: Init,
    params: FitParams,
) -> FitResult:
    """The fit of one face, neither compiled nor checked.

    Several starts run as a batch, or as the model's rule for them says. Which fit is kept is
    piecewise constant: derivatives are those of that fit. One that is not finite is kept only if
    all are; otherwise the likelihood alone decides, as it does in OpenFace.
    """
    if init is None or isinstance(init, tuple):
        pose, shape = initial_state(model, image, box) if init is None else init
        return postprocess(model, image, fit_from(model, image, pose, shape, params), params)
    dtype = model.pdm.mean.dtype
    box, rotations = jnp.asarray(box, dtype), jnp.asarray(init, dtype)
    model = model.prepare(params)
    if model.early_termination is not None and len(rotations) > 1:
        return model.early_termination.best(model, image, box, rotations, params)

    def from_rotation(rotation: Float[Array, "3"]) -> FitResult:
        pose = pose_from_box(model.pdm, box, rotation)
        return fit_from(model, image, pose, model.pdm.mean_shape(), params)

    if len(rotations) == 1:
        return postprocess(model, image, from_rotation(rotations[0]), params)
    fits = map_faces(from_rotation, rotations)
    likelihood = jnp.where(fits.status == FitStatus.NOT_FINITE, -math.inf, fits.likelihood)
    best = jnp.argmax(likelihood)
    kept = jax.tree.map(lambda array: array[best], fits)
    return postprocess(model, image, kept, params)
