"""Fits of many faces at once, on all devices that JAX sees."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jclnf.errors import BoxError, JclnfError
from jclnf.fitting._fit import check_inputs
from jclnf.fitting._hypotheses import best_of, rotations_array
from jclnf.fitting._mapping import map_faces
from jclnf.fitting._model import Model
from jclnf.fitting._result import FitResult
from jclnf.images import Crop, crop
from jclnf.params import FitParams


def fit_batch(
    model: Model,
    images: Sequence[np.ndarray] | np.ndarray,
    boxes: Any,
    params: FitParams | None = None,
    *,
    rotations: Any = None,
) -> FitResult:
    """Fit one face in each of several images.

    Works on the host side: images may be of different sizes, `jclnf.crop` brings them to a common
    one. The faces are spread over all of JAX's devices. On a CPU, have as many devices as cores
    (`jax.config.update("jax_num_cpu_devices", cores)` before JAX is used): each fits its faces one
    after the other, which is faster than threads within one fit. Each new batch size and crop
    size costs a compilation. To differentiate, `jax.vmap` the function `jclnf.fit` instead.

    Args:
        model: prepare it (`Model.prepare`) and put it on all devices (`replicate`) once if you call
            this more than once; both are done at each call otherwise.
        images: one `(h, w)` grey image for each face.
        boxes: `(b, 4)`, see `jclnf.fit`.
        params: settings; `model.defaults` if not given.
        rotations: `(r, 3)` start rotations tried for each face, see `jclnf.fit_hypotheses`. If not
            given, each fit starts where `jclnf.fit` does.

    Returns:
        The results, each array with a leading axis for the faces.

    Raises:
        ImageError, BoxError, ParamsError: as `jclnf.fit` and `jclnf.crop` do; with the index of the
            face that is meant.
    """
    params = model.defaults if params is None else params
    crops = crops_of_one_size(images, boxes)
    check_inputs(model, crops[0].image, crops[0].box, params)
    # Every device gets the same number of faces: the last one is repeated to fill up.
    extra = -len(crops) % jax.local_device_count()
    padded = crops + crops[-1:] * extra
    result = _fit_batch(
        replicate(model),
        _spread(np.stack([piece.image for piece in padded])),
        _spread(np.stack([piece.box for piece in padded])),
        replicate(rotations_array(rotations)),
        replicate(params),
    )
    result = jax.tree.map(lambda array: array[: len(crops)], jax.device_get(result))
    offsets = np.stack([piece.offset for piece in crops])
    return jax.vmap(FitResult.shifted)(result, offsets)


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
    crops = []
    for index, (image, box) in enumerate(zip(images, boxes, strict=True)):
        try:
            crops.append(crop(image, box))
        except JclnfError as error:
            raise type(error)(f"face {index}: {error}") from None
    size = max(piece.image.shape[0] for piece in crops)
    return [
        piece if piece.image.shape[0] == size else crop(image, box, sizes=(size,))
        for piece, image, box in zip(crops, images, boxes, strict=True)
    ]


def replicate(tree: Any) -> Any:
    """A model (or any tree of arrays) with a copy on each of JAX's devices; nothing moves twice."""
    arrays, rest = eqx.partition(tree, eqx.is_array_like)
    return eqx.combine(jax.device_put(arrays, NamedSharding(_mesh(), PartitionSpec())), rest)


def _spread(array: np.ndarray) -> jax.Array:
    return jax.device_put(array, NamedSharding(_mesh(), PartitionSpec("faces")))


def _mesh() -> Mesh:
    return jax.make_mesh((jax.local_device_count(),), ("faces",), devices=jax.local_devices())


@eqx.filter_jit
def _fit_batch(
    model: Model,
    images: jax.Array,
    boxes: jax.Array,
    rotations: jax.Array | None,
    params: FitParams,
) -> FitResult:
    prepared = model.prepare(params)
    # shard_map takes arrays only: what is static in the model stays outside.
    arrays, static = eqx.partition((prepared, rotations, params), eqx.is_array)

    def on_one_device(arrays: Any, images: jax.Array, boxes: jax.Array) -> FitResult:
        model, rotations, params = eqx.combine(arrays, static)
        return map_faces(
            lambda face: best_of(model, face[0], face[1], rotations, params), (images, boxes)
        )

    faces, everywhere = PartitionSpec("faces"), PartitionSpec()
    return jax.shard_map(
        on_one_device,
        mesh=_mesh(),
        in_specs=(everywhere, faces, faces),
        out_specs=faces,
        check_vma=False,
    )(arrays, images, boxes)
