"""Fits from several start rotations, of which the likeliest is kept."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from jclnf.errors import ParamsError
from jclnf.fitting._early_termination import (
    COMPLETED,
    begin,
    best_until_accepted,
    complete,
    likelihood_of,
)
from jclnf.fitting._fit import check_inputs, finish, place
from jclnf.fitting._mapping import map_faces
from jclnf.fitting._model import Model
from jclnf.fitting._result import FitResult, FitStatus
from jclnf.fitting._scales import fit_from
from jclnf.geometry import pose_from_box
from jclnf.params import FitParams

FRONTAL = ((0.0, 0.0, 0.0),)
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
    rotations: Any = None,
) -> FitResult:
    """Fit one face from each of several start rotations, and keep the likeliest fit.

    Arguments and errors are those of `jclnf.fit`, with `rotations` (r, 3) Euler angles in radians.
    If they are not given, a model with a learned start is fitted from that alone, another one from
    `OPENFACE_ROTATIONS`.
    The starts run as a batch (see `fitting/_mapping.py`). If the model has a rule for early
    termination, only the starts that it asks for go on after the first scale. Which fit is kept is
    piecewise constant: derivatives are those of that fit. One that is not finite is kept only if
    all are; otherwise the likelihood alone decides, as it does in OpenFace: look at the status of
    what is kept.
    """
    params = model.defaults if params is None else params
    box = check_inputs(model, image, box, params)
    if rotations is None and model.start is None:
        rotations = OPENFACE_ROTATIONS
    return _fit_hypotheses(model, image, box, rotations_array(rotations), params)


def fit_until_accepted(
    model: Model,
    image: Real[Any, "h w"],
    box: Any,
    params: FitParams | None = None,
    *,
    rotations: Any = OPENFACE_ROTATIONS,
) -> FitResult:
    """Fit one face from several start rotations, one after the other until one is accepted.

    `fit_hypotheses` computes the same for such a model, but this runs on the host and looks at
    each start's score before it begins the next: a face whose first start is accepted costs one
    fit. So it is the fast way for single images, and cannot be transformed.

    Args:
        model, image, box, params: as for `jclnf.fit`; a model with `early_termination`.
        rotations: `(r, 3)` start rotations in the order in which they are tried, Euler angles in
            radians.

    Returns:
        The accepted fit, or else the likeliest of the completed ones.

    Raises:
        ImageError, BoxError, ParamsError: as `jclnf.fit` does; or the model has no rule.
    """
    params = model.defaults if params is None else params
    box = check_inputs(model, image, box, params)
    rule = model.early_termination
    if rule is None:
        raise ParamsError(
            "the model has no rule for early termination (only OpenFace's convolutional one has): "
            "use fit_hypotheses"
        )
    begun, scores = [], []
    for rotation in rotations_array(rotations):
        first = _begin_compiled(model, image, box, rotation, params)
        score, accepted = jax.device_get(rule.score(first.likelihood, first.trace.view[0]))
        if accepted:
            kept = _complete_compiled(model, image, first, params)
            return _finish_compiled(model, image, kept, params)
        begun.append(first)
        scores.append(score)
    best = np.argsort(-np.array(scores), kind="stable")[:COMPLETED]
    fits = [_complete_compiled(model, image, begun[index], params) for index in best]
    kept = fits[int(np.argmax([likelihood_of(fit) for fit in fits]))]
    return _finish_compiled(model, image, kept, params)


@eqx.filter_jit
def _fit_hypotheses(
    model: Model, image: Any, box: Any, rotations: Any, params: FitParams
) -> FitResult:
    return best_of(model.prepare(params), image, box, rotations, params)


def best_of(model: Model, image: Any, box: Any, rotations: Any, params: FitParams) -> FitResult:
    """What `fit_hypotheses` computes, neither compiled nor checked; without rotations one fit
    from where `jclnf.fit` starts."""
    if rotations is None:
        pose, shape = place(model, image, jnp.asarray(box, model.pdm.mean.dtype), None)
        return finish(model, image, fit_from(model, image, pose, shape, params), params)
    if model.early_termination is not None and len(rotations) > 1:
        return best_until_accepted(model, model.early_termination, image, box, rotations, params)
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
    """Start rotations as an array (r, 3), or None if there are none."""
    if rotations is None:
        return None
    array = rotations if isinstance(rotations, jax.Array) else np.asarray(rotations, np.float32)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise ParamsError(f"rotations are of shape (r, 3), not {array.shape}")
    return array


_begin_compiled = eqx.filter_jit(begin)
_complete_compiled = eqx.filter_jit(complete)
_finish_compiled = eqx.filter_jit(finish)
