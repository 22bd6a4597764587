"""The fit of a face in a box, as it is called: inputs checked, cropped and compiled for."""

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Real

from jclnf.errors import BoxError, ImageError, ParamsError, is_concrete
from jclnf.fitting._hypotheses import Init, as_init, fit_face
from jclnf.fitting._mapping import one_by_one
from jclnf.fitting._model import Model
from jclnf.fitting._result import FitResult
from jclnf.images import check_grey, crop
from jclnf.params import FitParams
from jclnf.runtime import check_process, kept


def fit(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Any,
    params: FitParams | None = None,
    *,
    init: Any = None,
) -> FitResult:
    """Fit the landmarks of one face.

    Pure: `jax.jit`, `jax.vmap` and `jax.grad` apply to it. For many images use `fit_images`, for
    the frames of a video a `Tracker`.

    A NumPy image with a box of plain numbers is cropped around the box (see `jclnf.crop`) to one of
    a few sizes, and the result is that in the whole image. So photographs of any size share a
    handful of compilations, one for each size of crop. Traced values and JAX arrays are taken as
    they are: each new size or type of those costs a compilation.

    Args:
        model: from `load_model` or `load_openface`.
        image: `(h, w)` grey levels 0-255, of any floating-point type or uint8; a NumPy image may
            also be of another type of integers.
        box: (x, y, w, h) in pixels, tight around the face outline (eyebrows to chin, jaw to jaw).
        params: settings; `model.defaults` if not given.
        init: where the fit starts: Euler angles (pitch, yaw, roll) in radians by which the mean
            shape in the box is turned, `(3,)`; several of those, `(r, 3)`, of which the likeliest
            fit is kept; or a `Pose` and shape parameters, as `result.pose, result.shape` of an
            earlier fit. If not given, `params.rotations`, or the model's learned start (the frontal
            mean shape if it has none) where that is None.

    Returns:
        The fitted face. Check `result.success`: a fit can fail without an error;
        `result.message` says what to do then.

    Raises:
        ImageError, BoxError, ParamsError: inputs that no fit can be started from. Values are
            looked at only where they are concrete, not under a transformation.
    """
    params = model.defaults if params is None else params
    offset = None
    if isinstance(image, np.ndarray) and not _traced(box):
        cropped = crop(image, box)
        image, box, offset = cropped.image, cropped.box, cropped.offset
    box = check_inputs(model, image, box, params)
    if offset is None:
        check_levels(image)
    ready = prepared(model, params)
    given = image, box, as_init(model, init, params), params, offset
    transformed = ready is model or _traced(given)
    if transformed:
        return _fit(ready, *given)
    result: FitResult = compiled(_fit_alone, model)(ready, *given)
    return result


@eqx.filter_jit
def _fit(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Float[Array, "4"] | Float[np.ndarray, "4"],
    init: Init,
    params: FitParams,
    offset: Any,
) -> FitResult:
    return fit_face_at(model, image, box, init, params, offset)


def _fit_alone(*given: Any) -> FitResult:
    """`_fit` of values that no transformation is applied to."""
    result: FitResult = kept(fit_face_at)(*given)
    return result


Options = tuple[tuple[str, Any], ...]
"""XLA's, by name."""


def cpu_options(model: Model) -> Options:
    """With what programs of a model's fits are compiled on the default device; only those of their
    own, no part of one that is being traced, can be."""
    return known_options(model.experts.cpu_options) if one_by_one() else ()


def known_options(options: Options) -> Options:
    """Those that this version of XLA has. Without one, programs are slower, and their results the
    same up to rounding."""
    return tuple(filter(_known, options))


@functools.cache
def _known(option: tuple[str, Any]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict([option])).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def compiled(function: Callable[..., Any], model: Model) -> Callable[..., Any]:
    """A function of a model's fits, compiled so that they are fastest on the default device."""
    traced = get_opaque_trace_state(convention="nnx") != _NOTHING_TRACED
    return _compiled(function, () if traced else cpu_options(model))


with jax.core.eval_context():
    _NOTHING_TRACED = get_opaque_trace_state(convention="nnx")


@functools.cache
def _compiled(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """As `eqx.filter_jit`, in half of the time that a call takes."""

    def run(fixed: tuple[Any, tuple[Any, ...]], arrays: list[Any]) -> Any:
        structure, others = fixed
        both = zip(others, arrays, strict=True)
        leaves = [array if other is _ARRAY else other for other, array in both]
        return function(*jax.tree.unflatten(structure, leaves))

    program = jax.jit(run, static_argnums=0, compiler_options=dict(options) or None)

    def call(*given: Any) -> Any:
        leaves, structure = jax.tree.flatten(given)
        known = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
        others = (_ARRAY if at else leaf for at, leaf in zip(known, leaves, strict=True))
        arrays = [leaf if at else None for at, leaf in zip(known, leaves, strict=True)]
        return program((structure, tuple(others)), arrays)

    return call


_ARRAY = object()
"""In the place of an array, among what a program is compiled for."""


def fit_face_at(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    box: Float[Array, "4"] | Float[np.ndarray, "4"],
    init: Init,
    params: FitParams,
    offset: Any,
) -> FitResult:
    """`fit_face` in a crop: box and image are the crop's, a pose in `init` and the result are those
    of the image that it was cut from at `offset` (2,)."""
    if offset is None:
        return fit_face(model, image, box, init, params)
    if isinstance(init, tuple):
        pose, shape = init
        translation = pose.translation - jnp.asarray(offset, pose.translation.dtype)
        init = dataclasses.replace(pose, translation=translation), shape
    return fit_face(model, image, box, init, params).shifted(offset)


def check_inputs(model: Model, image: Any, box: Any, params: FitParams) -> Any:
    """Raise on inputs that no fit can be started from, as far as they are concrete.

    Returns:
        The box as an array of the model's precision, JAX's if it was one: plain numbers would be
        compiled into a fit, each box anew.
    """
    check_process()
    if len(params.windows) != len(model.scalings):
        raise ParamsError(
            f"the settings are for {len(params.windows)} scales, the model has "
            f"{len(model.scalings)}: start from FitParams.openface(model) or model.defaults"
        )
    n = model.pdm.n_landmarks
    if params.freedom is not None and jnp.shape(params.freedom) not in ((), (n,)):
        raise ParamsError(
            f"freedom is of shape {jnp.shape(params.freedom)}: give one number, or {n}"
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
        # NumPy's where it can be: JAX's would go to the device and back.
        library = jnp if isinstance(box, jax.Array) or _traced(box) else np
        array = library.asarray(box, model.pdm.mean.dtype)
    except (TypeError, ValueError):
        raise BoxError(f"a box is four numbers (x, y, w, h), not {box!r}") from None
    if array.shape != (4,):
        raise BoxError(f"a box is four numbers (x, y, w, h), not of shape {array.shape}")
    if not _traced(array):
        numbers = np.asarray(array).tolist()
        if not all(map(math.isfinite, numbers)) or min(numbers[2:]) <= 0:
            raise BoxError(f"box {numbers}: it must be finite, with w and h above 0")
    return array


def check_levels(images: Any) -> None:
    """Raise ImageError on grey levels that are not in 0-255, of an image or of several, if they are
    concrete."""
    if is_concrete(images) and images.dtype != jnp.uint8:
        floats = jnp.issubdtype(images.dtype, jnp.floating)  # JAX has some that NumPy has not
        levels = np.asarray(images, np.float32 if floats else None)
        check_grey(levels.reshape(-1, levels.shape[-1]))


_PREPARED: dict[int, tuple[Any, dict[Any, Model]]] = {}
"""Models that are alive, by their ids: a weak reference, and what was made of each."""


def prepared(model: Model, params: FitParams, *, everywhere: bool = False) -> Model:
    """A model with all that the settings' windows allow computed in advance; each model once.

    Args:
        model: the model. If it is being transformed, and only then, it is what is returned, since
            derivatives with respect to its arrays pass through that computation.
        params: the settings that it will be used with.
        everywhere: have a copy on each of JAX's devices.
    """
    if _traced(model):
        return model
    at = id(model)
    if at not in _PREPARED:
        _PREPARED[at] = weakref.ref(model, lambda _: _PREPARED.pop(at, None)), {}
    _, known = _PREPARED[at]
    key = params.windows, everywhere
    if key not in known:
        with jax.ensure_compile_time_eval():
            ready = model.prepare(params)
            ready = replicate(ready) if everywhere else ready
        ours, theirs = jax.tree.leaves(ready), jax.tree.leaves(model)
        same = len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))
        # A model must not keep itself alive.
        known[key] = jax.tree.map(lambda leaf: leaf, model) if same else ready
    return known[key]


def replicate(tree: Any) -> Any:
    """A model (or any tree of arrays) with a copy on each of JAX's devices; nothing moves twice."""
    arrays, rest = eqx.partition(tree, eqx.is_array_like)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh(), PartitionSpec())), rest)


def mesh() -> Any:
    """All of JAX's devices in a row."""
    return jax.make_mesh((jax.local_device_count(),), ("faces",), devices=jax.local_devices())


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
