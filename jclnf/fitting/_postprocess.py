"""From where a fit ended to its result: landmarks read off, parts, and the confidence in it.

A fit ends where responses, prior and the number of iterations bring it. That is off from what is
annotated by a little, in the same way for all faces of a kind: the prior draws faces towards the
mean shape, and responses peak where the image is clear. A second shape model, for the same
parameters, can say where the annotation would be.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from jclnf.fitting._model import Model
from jclnf.fitting._parts import fit_parts
from jclnf.fitting._result import FitResult
from jclnf.geometry import project, turned3d
from jclnf.params import FitParams


def postprocess(
    model: Model, image: Real[Array, "h w"] | np.ndarray, result: FitResult, params: FitParams
) -> FitResult:
    """A face that was fitted, with its parts (if `params.parts`) and its confidence (if the model
    can tell). Done once, when it is known which of several fits is kept."""
    image = jnp.asarray(image)
    result = read_off(model, result)
    if params.parts:
        result = fit_parts(model, image, result, params)
    if model.confidence is None:
        return result
    face, each = model.confidence.judge(model.pdm, image, result)
    return dataclasses.replace(
        result,
        confidence=jnp.where(result.ok, face, 0.0),
        threshold=model.confidence.threshold,
        landmark_confidence=None if each is None else jnp.where(result.ok, each, 0.0),
    )


def read_off(model: Model, result: FitResult) -> FitResult:
    """The result with its landmarks by the model's `readout`, if it has one; pose and shape, which
    a next fit would start from, stay as they are."""
    if model.readout is None:
        return result
    at = (result.pose, result.shape)
    return dataclasses.replace(
        result,
        landmarks=result.landmarks + (project(model.readout, *at) - project(model.pdm, *at)),
        landmarks3d=turned3d(model.readout, *at),
    )
