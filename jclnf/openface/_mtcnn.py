"""OpenFace's files of the MTCNN face detector: a list and three binary files, one a network.

`MTCNN_detector.txt` names the files as `PNet`, `RNet` and `ONet`. Each holds, little-endian, int32
number of layers and the layers, see `_read_layer`.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclnf.openface._binary import BinaryReader, read_bytes
from jclnf.openface._install import models_folder
from jclnf.openface._layers import MAX_BYTES, MAX_LAYERS, read_convolution, read_dense, read_floats
from jclnf.openface._text import read_each

LIST_FILE = "MTCNN_detector.txt"
FOLDER = "mtcnn_detector"
"""Where OpenFace's model folder has the list and the networks."""

INPUT_SIDES = {"PNet": 12, "RNet": 24, "ONet": 48}
"""Side in pixels of the square image that a network decides about."""
OUTPUTS = 6
"""Numbers that a network puts out at least: of two classes, and four of the box's correction."""

MAX_SIDE = 16
"""Largest side of a kernel and of a pooling window."""

_MISSING = (
    f"no such file; give OpenFace's model folder, its folder {FOLDER} or the {LIST_FILE} in it"
)


class LayerArrays(NamedTuple):
    """A layer: the name of its class in `detect/_mtcnn_networks.py`, and its fields."""

    kind: str
    fields: dict[str, np.ndarray | tuple[int, int]]


Network = tuple[LayerArrays, ...]


class MtcnnArrays(NamedTuple):
    """The layers of the three networks."""

    pnet: Network
    rnet: Network
    onet: Network


def find_mtcnn(model: Path) -> str | None:
    """Where OpenFace's MTCNN is, as `read_mtcnn` takes it: "" if it is installed; None if it is not
    there.

    Args:
        model: main file or folder of a landmark detector, or any other file, beside which it is
            looked for first.
    """
    folder = model if os.path.isdir(model) else model.parent
    if os.path.isfile(folder / FOLDER / LIST_FILE) and folder != models_folder():
        return str(folder / FOLDER)
    return "" if (models_folder() / FOLDER / LIST_FILE).is_file() else None


def read_mtcnn(path: str | os.PathLike[str] | None = None) -> MtcnnArrays:
    """Read the networks of OpenFace's MTCNN.

    Args:
        path: OpenFace's model folder, its folder `mtcnn_detector`, or the list in it; None for
            where OpenFace's models are installed.

    Raises:
        ModelFileError: a file is missing, truncated or goes on too long, holds what the format
            does not have, numbers that are not finite in float32, or layers that do not go
            together.
    """
    if path is None:
        path, missing = (
            models_folder() / FOLDER / LIST_FILE,
            (
                "OpenFace's MTCNN is not installed: install OpenFace's models with `jclnf models`, "
                "or give the folder that has them"
            ),
        )
    else:
        path, missing = _list_file(Path(path)), _MISSING
    entries = read_each(path, tuple(INPUT_SIDES), missing=missing)
    return MtcnnArrays(
        *(
            read_network(entries[name].path, name, missing=entries[name].missing)
            for name in INPUT_SIDES
        )
    )


def read_network(path: Path, name: str, *, missing: str = "no such file") -> Network:
    """Read one of the networks of `INPUT_SIDES`; raises as `read_mtcnn`.

    Kernels come as `(y, x, in, out)`, weights of full layers as `(in, out)`, in the order of maps
    flattened row by row with the map last.
    """
    reader = BinaryReader(path, read_bytes(path, MAX_BYTES, missing=missing))
    count = reader.integer("number of layers", 1, MAX_LAYERS)
    layers = []
    for index in range(count):
        reader.within = f"layer {index}: "
        layers.append(_read_layer(reader))
    reader.within = ""
    reader.end()
    side = INPUT_SIDES[name]
    shape, layers = _connect(reader, layers, (3, side, side))
    if shape[0] < OUTPUTS or shape[1:] not in ((), (1, 1)):
        raise reader.error(f"{name} puts out {shape}, not {OUTPUTS} or more numbers", offset=0)
    if name == "PNet":
        # It runs over whole images, where its answers must lie two pixels apart.
        wider, _ = _connect(reader, layers, (3, side + 2, side + 4))
        if wider[1:] != (2, 3):
            raise reader.error("PNet does not move over an image by two pixels", offset=0)
    return tuple(layers)


def _list_file(path: Path) -> Path:
    """The list that is meant by a path."""
    if not os.path.isdir(path):
        return path
    within = path / FOLDER / LIST_FILE
    return within if os.path.isfile(within) else path / LIST_FILE


def _read_layer(reader: BinaryReader) -> LayerArrays:
    """A layer: int32 code, and what follows it (for 0 and 2 see `openface/_layers.py`):

    - 0, convolution; 2, fully connected;
    - 1, pooling: int32 width and height of the window, int32 step in x and in y;
    - 3, rectifier with slopes: their matrix (maps x 1).
    """
    code = reader.integer("kind of a layer", 0, 3)
    if code == 0:
        kernels, bias = read_convolution(reader, MAX_SIDE)
        kernels = np.ascontiguousarray(kernels.transpose(2, 3, 0, 1))
        return LayerArrays("Convolution", {"kernels": kernels, "bias": bias})
    if code == 1:
        width, height = (reader.integer(f"{s} of a window", 1, MAX_SIDE) for s in _SIDES)
        # A step beyond the window could put a window outside of the map.
        across = reader.integer("step in x", 1, width)
        down = reader.integer("step in y", 1, height)
        return LayerArrays("MaxPool", {"window": (height, width), "step": (down, across)})
    if code == 2:
        weights, bias = read_dense(reader)
        return LayerArrays("Dense", {"weights": weights, "bias": bias})
    return LayerArrays("PReLU", {"slopes": read_floats(reader, "the slopes", (None, 1))[:, 0]})


def _connect(
    reader: BinaryReader, layers: list[LayerArrays], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], list[LayerArrays]]:
    """The output for an image of `shape` (maps, height, width), and the layers, checked to fit
    together; full ones that take whole maps turned to take them row by row."""
    connected = []
    for index, layer in enumerate(layers):
        problem = None
        arrays = {k: v for k, v in layer.fields.items() if isinstance(v, np.ndarray)}
        if layer.kind == "Convolution":
            height, width, inputs, outputs = arrays["kernels"].shape
            if len(shape) != 3 or shape[0] != inputs:
                problem = f"takes {inputs} maps, not {shape}"
            else:
                shape = (outputs, shape[1] - height + 1, shape[2] - width + 1)
        elif layer.kind == "MaxPool":
            if len(shape) != 3 or any(
                side < window
                for side, window in zip(shape[1:], layer.fields["window"], strict=True)
            ):
                problem = f"pools {shape}"
            else:
                sides = zip(shape[1:], layer.fields["window"], layer.fields["step"], strict=True)
                shape = (shape[0], *(pooled_side(*each) for each in sides))
        elif layer.kind == "PReLU":
            if len(arrays["slopes"]) != shape[0]:
                problem = f"has {len(arrays['slopes'])} slopes for {shape}"
        else:
            inputs, outputs = arrays["weights"].shape
            if inputs == shape[0]:
                shape = (outputs, *shape[1:])
            elif inputs == np.prod(shape):
                # In the file the maps are flattened column by column.
                maps, height, width = shape
                weights = arrays["weights"].reshape(maps, width, height, outputs)
                weights = weights.transpose(2, 1, 0, 3)
                arrays["weights"] = weights.reshape(inputs, outputs)
                layer = LayerArrays("Dense", {**arrays})
                shape = (outputs,)
            else:
                problem = f"takes {inputs} numbers, not {shape}"
        if problem is None and min(shape) < 1:
            problem = f"puts out {shape}"
        if problem is not None:
            raise reader.error(f"layer {index} {problem}", offset=0)
        connected.append(layer)
    return shape, connected


def pooled_side(side: int, window: int, step: int) -> int:
    """How many windows there are on a side: the last may reach over the border by half a step."""
    return (2 * (side - window) + step) // (2 * step) + 1


_SIDES = ("width", "height")
