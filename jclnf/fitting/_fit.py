"""The whole fit of a face in a box: the fit proper, its parts, and the confidence in it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jclnf.errors import BoxError, ImageError, ParamsError
from jclnf.fitting._model import Model
from jclnf.fitting._parts import fit_parts
from jclnf.fitting._readout import read_off
from jclnf.fitting._result import FitResult
from jclnf.fitting._scales import fit_from
from jclnf.geometry import Pose, pose_from_box
from jclnf.params import FitParams


def fit(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Any,
    params: FitParams | None = None,
    *,
    rotation: Any = None,
) -> FitResult:
    """Fit the landmarks of one face.

    Pure and compiled: `jax.jit`, `jax.vmap` and `jax.grad` apply to it. Each new size or type of
    image costs a compilation; `jclnf.crop` brings images to a few sizes.

    Args:
        model: from `load_model` or `load_openface`, prepared or not.
        image: `(h, w)` grey levels 0-255, of any floating-point type or uint8.
        box: (x, y, w, h) in pixels, tight around the face outline (eyebrows to chin, jaw to jaw).
        params: settings; `model.defaults` if not given.
        rotation: start from the mean shape turned by these Euler angles (pitch, yaw, roll) in
            radians. If not given, from the model's learned start, or the frontal mean shape where
            it has none.

    Returns:
        The fitted face. Check `result.success`: a fit can fail without an error.

    Raises:
        ImageError, BoxError, ParamsError: inputs that no fit can be started from. Values are
            looked at only where they are concrete, not under a transformation.
    """
    params = model.defaults if params is None else params
    box = check_inputs(model, image, box, params)
    if rotation is not None:
        try:
            rotation = jnp.asarray(rotation, model.pdm.mean.dtype)
        except (TypeError, ValueError):
            raise ParamsError(f"a rotation is three Euler angles, not {rotation!r}") from None
        if rotation.shape != (3,):
            raise ParamsError(f"a rotation is three Euler angles, not of shape {rotation.shape}")
    return _fit(model, image, box, rotation, params)


@eqx.filter_jit
def _fit(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Float[Array, "4"],
    rotation: Float[Array, "3"] | None,
    params: FitParams,
) -> FitResult:
    pose, shape = place(model, image, box, rotation)
    return finish(model, image, fit_from(model, image, pose, shape, params), params)


def place(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Float[Array, "4"],
    rotation: Float[Array, "3"] | None,
) -> tuple[Pose, Float[Array, " m"]]:
    """The pose and shape that a fit starts from, see `fit`."""
    if rotation is None and model.start is not None:
        return model.start(model.pdm, jnp.asarray(image), box)
    rotation = jnp.zeros(3, model.pdm.mean.dtype) if rotation is None else rotation
    return pose_from_box(model.pdm, box, rotation), model.pdm.mean_shape()


def finish(
    model: Model, image: Real[Array, "h w"] | np.ndarray, result: FitResult, params: FitParams
) -> FitResult:
    """A face that was fitted, with its parts (if `params.parts`) and its confidence (if the model
    can tell): what is done once, when it is known which fit is kept."""
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


def check_inputs(model: Model, image: Any, box: Any, params: FitParams) -> Float[Array, "4"]:
    """Raise on inputs that no fit can be started from, as far as they are concrete.

    Returns:
        The box as an array of the model's precision: plain numbers would be compiled into a fit,
        each box anew.
    """
    if len(params.windows) != len(model.scalings):
        raise ParamsError(
            f"the settings are for {len(params.windows)} scales, the model has "
            f"{len(model.scalings)}: start from FitParams.openface(model) or model.defaults"
        )
    if params.parts and not model.parts:
        raise ParamsError(
            "the settings ask for parts, the model has none: load it with its parts, "
            "load_openface(path, parts=True), or set parts=False"
        )
    if not hasattr(image, "shape") or len(image.shape) != 2 or 0 in image.shape:
        shape = getattr(image, "shape", type(image).__name__)
        raise ImageError(f"the image must be grey, (h, w) and not empty, not {shape}: convert it")
    if not jnp.issubdtype(image.dtype, jnp.floating) and image.dtype != jnp.uint8:
        raise ImageError(
            f"the image is of type {image.dtype}: scale it to 0-255 and convert it to float32"
        )
    try:
        array = jnp.asarray(box, model.pdm.mean.dtype)
    except (TypeError, ValueError):
        raise BoxError(f"a box is four numbers (x, y, w, h), not {box!r}") from None
    if array.shape != (4,):
        raise BoxError(f"a box is four numbers (x, y, w, h), not of shape {array.shape}")
    if not isinstance(array, jax.core.Tracer):
        numbers = np.asarray(array)
        if not np.isfinite(numbers).all() or (numbers[2:] <= 0).any():
            raise BoxError(f"box {numbers.tolist()}: it must be finite, with w and h above 0")
    return array
