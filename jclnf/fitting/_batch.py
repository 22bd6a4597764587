"""Fits of many faces at once, on all devices that JAX sees."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jclnf.errors import BoxError, JclnfError, ParamsError
from jclnf.fitting._fit import (
    check_inputs,
    compiled,
    fit_face_at,
    mesh,
    prepared,
    replicate,
)
from jclnf.fitting._hypotheses import Init, as_init
from jclnf.fitting._mapping import map_faces, one_by_one
from jclnf.fitting._model import Model
from jclnf.fitting._result import FitResult, Trace
from jclnf.images import Crop, crop
from jclnf.params import FitParams, on_host
from jclnf.runtime import kept

MAX_PIXELS = 2**26
"""Most pixels of a batch of crops on one device."""
JOINED_PIXELS = 2**20
"""Most pixels that crops are filled up to so as to be fitted together with larger ones."""


def fit_images(
    model: Model,
    images: Iterable[np.ndarray],
    boxes: Any,
    params: FitParams | None = None,
    *,
    init: Any = None,
) -> FitResult:
    """Fit one face in each of several images of any sizes.

    Use it where speed counts and derivatives do not; to differentiate, `jax.vmap` the function
    `jclnf.fit` instead. Crops of one size are fitted together, a few of a small one with those of
    the next, in batches that are filled up to one of a few sizes: there is little to compile,
    however many faces there are. The faces are spread over all of JAX's devices. On a CPU, have as
    many devices as cores (`jax.config.update("jax_num_cpu_devices", cores)` before JAX is used):
    each fits its faces one after the other, or a few at a time, which is faster than threads within
    one fit.

    Args:
        model: as for `jclnf.fit`.
        images: one `(h, w)` grey image for each face; they may come from a generator.
        boxes: `(b, 4)`, see `jclnf.fit`.
        params: settings; `model.defaults` if not given.
        init: as for `jclnf.fit`, rotations for all faces; or a `Pose` and shape parameters whose
            arrays have a leading axis for the faces.

    Returns:
        The results in NumPy arrays, each with a leading axis for the faces, in their order. Their
        traces are empty: they have no scales.

    Raises:
        ImageError, BoxError, ParamsError: as `jclnf.fit` does; with the index of the face that is
            meant.
    """
    params = model.defaults if params is None else params
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise BoxError(f"boxes are (b, 4) with b > 0, one for each image, not {boxes.shape}")
    check_inputs(model, np.zeros((1, 1), np.uint8), np.ones(4), params)
    init = as_init(model, init, params)
    if isinstance(init, tuple):
        if jnp.shape(init[0].scale) != (len(boxes),):
            raise ParamsError(f"init has poses {jnp.shape(init[0].scale)} for {len(boxes)} images")
        init = jax.tree.map(np.asarray, init)
    rotations = None if isinstance(init, tuple) else init
    shared = prepared(model, params, everywhere=True), *replicate((params, rotations))
    fit_batch = compiled(_fit_batch, model)

    def fit_together(faces: list[tuple[int, Crop]], size: int) -> tuple[list[int], FitResult]:
        """The fits, and the index of the face that each is of; -1 where it is of none."""
        places, counts = dealt(len(faces), size)
        at, crops = zip(*(faces[min(i, len(faces) - 1)] for i in places), strict=True)
        batch = (
            _stacked([one.image for one in crops]),
            np.stack([one.box for one in crops]),
            np.stack([one.offset for one in crops]),
            jax.tree.map(lambda array: array[list(at)], init) if isinstance(init, tuple) else None,
        )
        known = [i if place < len(faces) else -1 for i, place in zip(at, places, strict=True)]
        return known, fit_batch(*shared, *distribute((batch, counts)))

    waiting: dict[int, list[tuple[int, Crop]]] = {}
    full: set[int] = set()
    fits = []
    for index, one in enumerate(_cropped(images, boxes)):
        side = len(one.image)
        faces = waiting.setdefault(side, [])
        faces.append((index, one))
        largest = batch_sizes(side)[-1]
        if len(faces) == largest:
            fits.append(fit_together(waiting.pop(side), largest))
            full.add(side)
    for side, faces in _joined(waiting).items():
        sizes = batch_sizes(side)
        size = sizes[-1] if side in full else next(s for s in sizes if s >= len(faces))
        fits.append(fit_together(faces, size))
    known = np.concatenate([at for at, _ in fits])
    order = np.argsort(known)[np.count_nonzero(known < 0) :]
    results = [on_host(result) for _, result in fits]
    result = jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *results)
    pdm = model.pdm
    trace = _no_traces(len(boxes), pdm.n_landmarks, pdm.n_modes, pdm.mean.dtype)
    return eqx.tree_at(_trace_of, result, trace, is_leaf=lambda node: node is None)


def _joined(waiting: dict[int, list[Any]]) -> dict[int, list[Any]]:
    """Faces by the side of their crops, where few of a side join those of the next larger one: it
    takes longer to begin another batch than to move their pixels."""
    groups = dict(sorted(waiting.items()))
    for side, larger in itertools.pairwise(list(groups)):
        together = groups[side] + groups[larger]
        few = len(groups[side]) * larger**2 <= JOINED_PIXELS
        if few and len(together) <= batch_sizes(larger)[-1]:
            groups[larger] = together
            del groups[side]
    return groups


def _stacked(crops: Sequence[np.ndarray]) -> np.ndarray:
    """Square crops, one above the other, all as large as the largest: what is beyond a crop is 0
    either way."""
    side = max(map(len, crops))
    stack = np.zeros((len(crops), side, side), crops[0].dtype)
    for place, image in zip(stack, crops, strict=True):
        place[: len(image), : len(image)] = image
    return stack


def dealt(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How a number of faces is dealt out to JAX's devices: which face is at each place of a batch
    of a size (`count` and more are none), and how many each device has, at its first places."""
    devices = jax.local_device_count()
    places = np.arange(size).reshape(-1, devices).T
    return places.reshape(-1), (places < count).sum(1)


def padded(items: Sequence[Any], size: int) -> list[Any]:
    """Items up to a number, the last one repeated: a batch of a size that is compiled already."""
    return [*items, *[items[-1]] * (size - len(items))]


def batch_sizes(side: int) -> list[int]:
    """The sizes of batches of crops of a side, ascending; each is compiled once.

    Accelerators work on a large batch as long as on a small one.
    """
    devices = jax.local_device_count()
    each = (1, 4, 16) if jax.default_backend() == "cpu" else (1, 8, 64, 256)
    return [devices * n for n in each if n == 1 or n * side**2 <= MAX_PIXELS]


def crops_of_one_size(images: Sequence[np.ndarray] | np.ndarray, boxes: Any) -> list[Crop]:
    """The crop of each face (see `jclnf.crop`), all as large as the largest.

    Raises:
        ImageError, BoxError: as `jclnf.crop`, with the index of the face that is meant.
    """
    boxes = np.asarray(boxes, np.float32)
    if len(images) == 0 or boxes.shape != (len(images), 4):
        raise BoxError(
            f"{len(images)} images need as many boxes, (b, 4) with b > 0, not {boxes.shape}"
        )
    crops = list(_cropped(images, boxes))
    size = max(len(one.image) for one in crops)
    return [
        one if len(one.image) == size else crop(image, box, sizes=(size,))
        for one, image, box in zip(crops, images, boxes, strict=True)
    ]


def _cropped(images: Iterable[np.ndarray], boxes: np.ndarray) -> Iterable[Crop]:
    count = 0
    for image in images:
        if count == len(boxes):
            raise BoxError(f"there are more images than the {count} boxes")
        try:
            yield crop(image, boxes[count])
        except JclnfError as error:
            raise type(error)(f"face {count}: {error}") from None
        count += 1
    if count < len(boxes):
        raise BoxError(f"there are {len(boxes)} boxes for {count} images")


def _trace_of(result: FitResult) -> Any:
    return result.trace


@functools.lru_cache(maxsize=8)
def _no_traces(faces: int, landmarks: int, modes: int, dtype: Any) -> Trace:
    """The traces of a batch, in NumPy arrays: even empty, they would take time to fetch."""
    trace = Trace.empty(landmarks, modes, dtype)
    return jax.tree.map(lambda array: np.zeros((faces, *array.shape), array.dtype), trace)


def _fit_one(
    model: Model, image: Any, box: Any, init: Init, params: FitParams, offset: Any
) -> FitResult:
    return eqx.tree_at(_trace_of, fit_face_at(model, image, box, init, params, offset), None)


def _fit_some(
    model: Model, images: Any, boxes: Any, init: Init, params: FitParams, offsets: Any
) -> FitResult:
    """Several faces of one size side by side; a pose in `init` is of each."""
    each = (0, 0, 0 if isinstance(init, tuple) else None, 0)

    def one(image: Any, box: Any, init: Init, offset: Any) -> FitResult:
        return _fit_one(model, image, box, init, params, offset)

    return jax.vmap(one, in_axes=each)(images, boxes, init, offsets)


def _fit_batch(
    model: Model, params: FitParams, rotations: Any, batch: Any, counts: Int[Array, " devices"]
) -> FitResult:
    # Of a few faces, a group that is not full would cost more than it saves.
    largest = len(batch[0]) == batch_sizes(batch[0].shape[-1])[-1]
    grouped = one_by_one() and largest and len(batch[0]) > len(counts)
    together = model.experts.together if grouped else 1
    fit = _fit_one if together == 1 else _fit_some
    if one_by_one():
        fit = kept(fit)

    def some(shared: Any, faces: Any) -> FitResult:
        model, params, rotations = shared
        image, box, offset, start = faces
        init: Init = rotations if start is None else start
        result: FitResult = fit(model, image, box, init, params, offset)
        return result

    return map_everywhere(some, (model, params, rotations), batch, counts, together)


def distribute(batch: Any) -> Any:
    """A batch, spread over all of JAX's devices as `map_everywhere` takes it."""
    return jax.device_put(batch, NamedSharding(mesh(), PartitionSpec("faces")))


def map_everywhere(
    function: Callable[[Any, Any], Any],
    shared: Any,
    batch: Any,
    counts: Int[Array, " devices"] | None = None,
    together: int = 1,
) -> Any:
    """`function(shared, one)` of each of a batch, spread over all of JAX's devices, and in the form
    that is fastest on each (`map_faces`).

    Args:
        function: what is to be done.
        shared: what is the same for all, a tree; its arrays as `replicate` returns them.
        batch: from `distribute`, a tree of arrays with a leading axis, whose length is a multiple
            of the number of devices.
        counts: how many of each device's part are wanted, its first ones; all if not given.
        together: if above 1, the function is of so many at a time, with a leading axis for them;
            they divide each device's part.
    """
    # shard_map takes arrays only: what is static stays outside.
    arrays, static = eqx.partition(shared, eqx.is_array)

    def on_one_device(arrays: Any, batch: Any, count: Any) -> Any:
        shared = eqx.combine(arrays, static)
        wanted = None if count is None else -(-count[0] // together)
        if together == 1:
            return map_faces(lambda one: function(shared, one), batch, count=wanted)
        groups = jax.tree.map(lambda array: array.reshape(-1, together, *array.shape[1:]), batch)
        found = map_faces(lambda some: function(shared, some), groups, count=wanted)
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), found)

    faces, everywhere = PartitionSpec("faces"), PartitionSpec()
    return jax.shard_map(
        on_one_device,
        mesh=mesh(),
        in_specs=(everywhere, faces, faces),
        out_specs=faces,
        check_vma=False,
    )(arrays, batch, counts)
