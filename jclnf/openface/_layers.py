"""Layers of networks as OpenFace's binary files have them, of the validator and of MTCNN alike.

A layer is an int32 code and, for the kinds that are read here, little-endian:

- convolution: int32 maps in, int32 maps out, for each map out a float32 bias, for each map in and
  each map out (this the faster) the matrix of a kernel;
- fully connected: the matrix of biases (out x 1), the matrix of weights (in x out).
"""

import numpy as np

from jclnf.openface._binary import BinaryReader

MAX_BYTES = 2**26
MAX_LAYERS = 100
MAX_MAPS = 1024

_FLOATS = (5, 6)
_FLOAT_CODES = {4: 5, 8: 6}


def read_convolution(reader: BinaryReader, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernels `(in, out, y, x)`, of at most `most` pixels a side, and biases `(out,)`."""
    inputs = reader.integer("number of maps into a convolution", 1, MAX_MAPS)
    outputs = reader.integer("number of maps out of a convolution", 1, MAX_MAPS)
    start = reader.offset
    bias = reader.records(np.dtype("<f4"), outputs, "the biases of a convolution")
    bias = reader.float32(bias, "the biases of a convolution", offset=start)
    start = reader.offset
    first = reader.matrix("a kernel", (None, None), _FLOATS)
    height, width = first.shape
    if not all(1 <= side <= most for side in (height, width)):
        raise reader.error(f"a kernel is {height} x {width}", offset=start)
    # There are thousands, all with the same header: they are read at once.
    header = (height, width, _FLOAT_CODES[first.dtype.itemsize])
    record = np.dtype([("header", "<i4", 3), ("values", first.dtype, first.shape)])
    others_at = reader.offset
    others = reader.records(record, inputs * outputs - 1, "the kernels of a convolution")
    unlike = np.flatnonzero((others["header"] != header).any(axis=1))
    if len(unlike):
        offset = others_at + int(unlike[0]) * record.itemsize
        raise reader.error(f"a kernel is not {height} x {width} as the first", offset=offset)
    kernels = np.concatenate([first[None], others["values"]])
    kernels = reader.float32(kernels, "the kernels of a convolution", offset=start)
    return kernels.reshape(inputs, outputs, height, width), bias


def read_dense(reader: BinaryReader) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(in, out)` and biases `(out,)`."""
    bias = read_floats(reader, "the biases of a full layer", (None, 1))[:, 0]
    return read_floats(reader, "the weights of a full layer", (None, len(bias))), bias


def read_floats(
    reader: BinaryReader, what: str, shape: tuple[int | None, int | None]
) -> np.ndarray:
    """A matrix of single or double precision, in single."""
    start = reader.offset
    return reader.float32(reader.matrix(what, shape, _FLOATS), what, offset=start)
