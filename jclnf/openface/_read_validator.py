"""OpenFace's files of validation networks: binary, one network and one warp for each view.

A file holds, little-endian, matrices as `BinaryReader.matrix` describes them:

- int32 3, the kind (a convolutional network; older kinds are not read); int32 number of views;
- for each view its centre, a 3x1 float64 matrix of Euler angles in degrees;
- for each view: the mean and the deviation of the face's normalised pixels, matrices of one row;
  int32 number of layers and the layers, see `_read_layer`; then the warp, see `_read_warp`.

Pixels, of faces as of maps in the network, are listed column by column.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclnf.openface._binary import BinaryReader, read_bytes
from jclnf.openface._layers import MAX_BYTES, MAX_LAYERS, read_convolution, read_dense, read_floats
from jclnf.openface._validator import LAYERS, Validator, View
from jclnf.params import to_device

MAX_VIEWS = 100
MAX_SIDE = 512
MAX_VALUES = 2**22
"""Most numbers that a layer may put out; those of OpenFace's networks put out up to 62,720."""
MAX_TRIANGLES = 10_000
TOLERANCE = 0.01
"""By how much, in pixels and in parts of a triangle, a pixel may lie off where the warp has it."""

_KIND = 3
_INT32, _FLOAT64 = 4, 6


class LayerArrays(NamedTuple):
    """A layer of a network: the name of its class in `LAYERS`, and its arrays."""

    kind: str
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class ViewArrays:
    """The arrays of a `View`."""

    vertices: np.ndarray
    mixture: np.ndarray
    mask: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    layers: tuple[LayerArrays, ...]


class ValidatorArrays(NamedTuple):
    """The arrays of a `Validator`, in NumPy."""

    centres: np.ndarray
    """`(v, 3)`, radians."""
    views: tuple[ViewArrays, ...]


def read_validator(path: Path, landmarks: int, *, missing: str = "no such file") -> ValidatorArrays:
    """Read the validation networks of a file.

    Args:
        path: the file.
        landmarks: number of landmarks that its faces must have.
        missing: what to say if the file is not there.

    Raises:
        ModelFileError: missing, truncated, trailing bytes, a field that cannot be what the format
            says, numbers that are not finite in float32, layers that do not go together, or a warp
            whose pixels do not lie in their triangles.
    """
    reader = BinaryReader(path, read_bytes(path, MAX_BYTES, missing=missing))
    reader.expect(_KIND, "kind of the validator (3, a convolutional network)")
    views = reader.integer("number of views", 1, MAX_VIEWS)
    centres = np.stack([_read_centre(reader) for _ in range(views)])
    read = []
    for view in range(views):
        reader.within = f"view {view}: "
        read.append(_read_view(reader, landmarks))
    reader.within = ""
    reader.end()
    return ValidatorArrays(centres, tuple(read))


def make_validator(arrays: ValidatorArrays) -> Validator:
    """The validator of arrays that were read."""
    views = []
    for view in arrays.views:
        layers = tuple(
            LAYERS[layer.kind](**{k: to_device(v) for k, v in layer.arrays.items()})
            for layer in view.layers
        )
        fields = {name: to_device(a) for name, a in vars(view).items() if name != "layers"}
        views.append(View(**fields, layers=layers))
    return Validator.create(to_device(arrays.centres), views)


def _read_centre(reader: BinaryReader) -> np.ndarray:
    start = reader.offset
    degrees = reader.matrix("the centre of a view", (3, 1), (_FLOAT64,))[:, 0]
    if not (np.abs(degrees) <= 360).all():
        raise reader.error("the centre of a view is not within 360 degrees", offset=start)
    return np.radians(degrees).astype(np.float32)


def _read_view(reader: BinaryReader, landmarks: int) -> ViewArrays:
    start = reader.offset
    mean = read_floats(reader, "the mean face", (1, None))[0]
    deviation_at = reader.offset
    deviation = read_floats(reader, "the deviation of faces", (1, len(mean)))[0]
    if not (deviation >= np.finfo(np.float32).tiny).all():
        raise reader.error("a deviation of faces is not positive", offset=deviation_at)
    network_at = reader.offset
    count = reader.integer("number of layers", 1, MAX_LAYERS)
    # The network stands before the warp, which has the size of its input.
    network = [_read_layer(reader) for _ in range(count)]
    vertices, mixture, mask = _read_warp(reader, landmarks)
    if len(mean) != mask.sum():
        problem = f"a mean face of {len(mean)} pixels for a mask of {mask.sum()}"
        raise reader.error(problem, offset=start)
    return ViewArrays(
        vertices,
        mixture,
        mask,
        _on_mask(mean, mask, 0.0),
        _on_mask(deviation, mask, 1.0),
        tuple(_connect(reader, network, mask.shape, network_at)),
    )


def _read_layer(reader: BinaryReader) -> LayerArrays:
    """A layer: int32 code, and for two of the codes more, see `openface/_layers.py`.

    The codes are 0, convolution; 1, pooling; 2, fully connected; 3, rectifier; 4, sigmoid.
    """
    code = reader.integer("kind of a layer", 0, 4)
    if code == 0:
        kernels, bias = read_convolution(reader, MAX_SIDE)
        return LayerArrays("Convolution", {"kernels": kernels.swapaxes(0, 1), "bias": bias})
    if code == 2:
        weights, bias = read_dense(reader)
        return LayerArrays("Dense", {"weights": weights.T, "bias": bias})
    return LayerArrays({1: "MaxPool", 3: "Rectifier", 4: "Sigmoid"}[code], {})


def _connect(
    reader: BinaryReader, layers: list[LayerArrays], sides: tuple[int, ...], start: int
) -> list[LayerArrays]:
    """The layers, checked to fit together, full ones turned to take maps row by row."""
    connected = []
    shape = (1, *sides)
    for index, layer in enumerate(layers):
        problem = None
        if layer.kind == "Convolution":
            outputs, inputs, *kernel = layer.arrays["kernels"].shape
            if len(shape) != 3 or shape[0] != inputs:
                problem = f"takes {inputs} maps, not {shape}"
            shape = (outputs, *(a - b + 1 for a, b in zip(shape[1:], kernel, strict=False)))
        elif layer.kind == "MaxPool":
            if len(shape) != 3:
                problem = "pools what are no maps"
            shape = (shape[0], *(-(-side // 2) for side in shape[1:]))
        elif layer.kind == "Dense":
            weights = layer.arrays["weights"]
            outputs, inputs = weights.shape
            if inputs != np.prod(shape):
                problem = f"takes {inputs} numbers, not {shape}"
            elif len(shape) == 3:
                maps, height, width = shape
                weights = weights.reshape(outputs, maps, width, height).swapaxes(2, 3)
                arrays = layer.arrays | {"weights": weights.reshape(outputs, inputs)}
                layer = LayerArrays("Dense", arrays)
            shape = (outputs,)
        if problem is None and (min(shape) < 1 or np.prod(shape) > MAX_VALUES):
            problem = f"puts out {shape}"
        if problem is not None:
            raise reader.error(f"layer {index} {problem}", offset=start)
        connected.append(layer)
    if len(shape) != 1 or shape[0] < 2:
        problem = f"the network puts out {shape}, not a number for each of two or more bins"
        raise reader.error(problem, offset=start)
    return connected


def _read_warp(reader: BinaryReader, landmarks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`vertices`, `mixture` and `mask` of a `View`.

    The file has int32 number of pixels in the mask; float64 least x and y of the frame; the
    landmarks in it (all x, then all y); triangles of landmarks (int32, T x 3); for each pixel its
    triangle (int32, -1 for none); the mask (int32); and alpha and beta, T x 3 each: the part of a
    triangle's second corner is `alpha . (1, x, y)`, that of its third `beta . (1, x, y)`.
    """
    start = reader.offset
    pixels = reader.integer("number of pixels in the mask", 1, MAX_SIDE**2)
    origin = [reader.number(f"least {axis} of the frame", -1e4, 1e4) for axis in "xy"]
    shape = read_floats(reader, "the landmarks of the frame", (2 * landmarks, 1))
    points = shape.reshape(2, landmarks).T.astype(np.float64)
    triangles_at = reader.offset
    triangles = reader.matrix("the triangles", (None, 3), (_INT32,))
    if not 1 <= len(triangles) <= MAX_TRIANGLES:
        problem = f"{len(triangles)} triangles, not 1 to {MAX_TRIANGLES}"
        raise reader.error(problem, offset=triangles_at)
    if not ((triangles >= 0) & (triangles < landmarks)).all():
        raise reader.error("a triangle has a corner that is no landmark", offset=triangles_at)
    map_at = reader.offset
    triangle = reader.matrix("the triangles of the pixels", (None, None), (_INT32,))
    if not all(1 <= side <= MAX_SIDE for side in triangle.shape):
        raise reader.error(f"the frame is of shape {triangle.shape}", offset=map_at)
    mask_at = reader.offset
    mask = reader.matrix("the mask", triangle.shape, (_INT32,))
    if not np.isin(mask, (0, 1)).all() or mask.sum() != pixels:
        raise reader.error(f"the mask is not one of {pixels} pixels", offset=mask_at)
    mask = mask.astype(bool)
    inside = triangle[mask]
    if not ((inside >= 0) & (inside < len(triangles))).all():
        raise reader.error("a pixel of the mask lies in no triangle", offset=map_at)
    parts = [
        read_floats(reader, what, (len(triangles), 3)).astype(np.float64)
        for what in ("alpha", "beta")
    ]
    y, x = np.nonzero(mask)
    position = np.stack([x + origin[0], y + origin[1]], axis=-1)
    second, third = (p[inside, 0] + np.sum(p[inside, 1:] * position, axis=-1) for p in parts)
    weights = np.stack([1 - second - third, second, third], axis=-1)
    corners = triangles[inside]
    error = np.abs(np.sum(weights[..., None] * points[corners], axis=1) - position)
    if not (error.max() <= TOLERANCE and weights.min() >= -TOLERANCE):
        raise reader.error("alpha and beta do not put pixels in their triangles", offset=start)
    vertices = np.zeros((*mask.shape, 3), np.int32)
    mixture = np.zeros((*mask.shape, 3), np.float32)
    vertices[mask], mixture[mask] = corners, weights
    return vertices, mixture, mask


def _on_mask(values: np.ndarray, mask: np.ndarray, elsewhere: float) -> np.ndarray:
    """An image of values that are listed column by column, over the pixels of a mask."""
    columns = np.full(mask.T.shape, elsewhere, np.float32)
    columns[mask.T] = values
    return np.ascontiguousarray(columns.T)
