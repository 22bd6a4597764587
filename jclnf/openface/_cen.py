"""OpenFace's binary files of convolutional (CEN) patch experts, one for each scale.

A file holds, little-endian, matrices as `BinaryReader.matrix` describes them:

- float64 scaling, in reference pixels per millimetre; int32 number of views;
- for each view its centre, a 3x1 float64 matrix of Euler angles in degrees;
- for each view which of the `n` landmarks it shows, an nx1 int32 matrix of 0 and 1;
- the mirror image of each landmark (1xn int32) and of each view (1xv int32), as indices;
- for each view and landmark a patch: int32 6, width, height, number of layers. For each layer
  int32 activation (0 sigmoid, 2 ReLU, others none), a matrix of biases and one of weights, outputs
  by inputs, both of float32 or float64. Last a float64 confidence.

The first layer's inputs are a constant 1 and the patch column by column. A patch without layers
is the mirror image of another: in the first view that of the mirrored landmark, in any other that
of the mirrored landmark in the mirrored view.

All files of OpenFace's model have 400 MB, which are read once, file after file, checked, and kept
as single-precision arrays without the experts that no view shows. That takes about a second from
the disk cache; reading on demand would spare it only where no fit follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.openface._binary import BinaryReader, read_bytes
from jclnf.openface._ccnf import MAX_SUPPORT, SCALING_RANGE
from jclnf.openface._text import Entry
from jclnf.openface._views import check_same, check_scales, read_views

MAX_BYTES = 2**30
MAX_LAYERS = 32
MAX_UNITS = 100_000

_INT32 = 4
_FLOATS = (5, 6)
_ACTIVATIONS = ("sigmoid", "none", "relu", "none")
"""By the number that stands for an activation in a file."""


@dataclass(frozen=True)
class Network:
    """The expert of one patch, as `CEN` takes it: no constant input, pixels row by row."""

    support: int
    activations: str
    weights: list[np.ndarray]
    """`(o, i)` float32 by layer."""
    biases: list[np.ndarray]
    """`(o,)` float32 by layer."""

    @property
    def architecture(self) -> tuple[Any, ...]:
        """The sizes that networks must have in common to lie in one array."""
        return self.activations, *(weight.shape for weight in self.weights)


@dataclass(frozen=True)
class CENScale:
    """The experts of one file, with `v` views and `n` landmarks."""

    path: Path
    scaling: float
    centres: np.ndarray
    """`(v, 3)`, radians, float32."""
    visible: np.ndarray
    """`(v, n)` bool."""
    confidence: np.ndarray
    """`(v, n)` float32."""
    networks: list[Network]
    """The experts that some view needs, all of one architecture."""
    expert_of: np.ndarray
    """`(v, n)` int32, indices of `networks`."""
    mirrored: np.ndarray
    """`(v, n)` bool, as in `CEN`."""


def read_cen(entries: Sequence[Entry], landmarks: int) -> dict[str, Any]:
    """The keyword arguments of `jclnf.experts._cen.CEN.create`, as NumPy arrays.

    Args:
        entries: the files, one for each scale in the order of the fit.
        landmarks: number of landmarks that each must have.

    Raises:
        ModelFileError: the errors of `read_cen_scale`; scales that do not go together.
    """
    check_scales(entries)
    scales = [read_cen_scale(e.path, landmarks, missing=e.missing) for e in entries]
    paths = [scale.path for scale in scales]
    check_same(paths, "other views", [scale.centres for scale in scales])
    sides = [np.array(scale.networks[0].support) for scale in scales]
    check_same(paths, "patches of another size", sides)
    banks: dict[tuple[Any, ...], list[Network]] = {}
    expert_of = []
    for scale in scales:
        bank = banks.setdefault(scale.networks[0].architecture, [])
        expert_of.append(scale.expert_of + len(bank))
        bank.extend(scale.networks)
    layers = {
        f"{number}.{layer}": (bank, layer)
        for number, bank in enumerate(banks.values())
        for layer in range(len(bank[0].weights))
    }
    numbers = {architecture: number for number, architecture in enumerate(banks)}
    names = ("centres", "visible", "confidence", "mirrored")
    return {
        "scalings": tuple(scale.scaling for scale in scales),
        "architectures": tuple(numbers[scale.networks[0].architecture] for scale in scales),
        "activations": tuple(bank[0].activations for bank in banks.values()),
        "weights": {k: np.stack([net.weights[i] for net in b]) for k, (b, i) in layers.items()},
        "biases": {k: np.stack([net.biases[i] for net in b]) for k, (b, i) in layers.items()},
        "expert_of": np.stack(expert_of),
        **{name: np.stack([getattr(scale, name) for scale in scales]) for name in names},
    }


def read_cen_scale(path: Path, landmarks: int, *, missing: str = "no such file") -> CENScale:
    """Read the experts of one scale.

    Args:
        path: the file.
        landmarks: number of landmarks that it must have.
        missing: what to say if it is not there.

    Raises:
        ModelFileError: missing, truncated, trailing bytes, a field that cannot be what the format
            says, numbers that are not finite in float32, another number of landmarks, experts
            that differ in their architecture, or a landmark that is visible where neither it nor
            its mirror image has an expert.
    """
    reader = BinaryReader(path, read_bytes(path, MAX_BYTES, missing=missing))
    scaling = reader.number("scaling", *SCALING_RANGE)
    centres, visible = read_views(reader, landmarks)
    mirror_landmarks = _read_indices(reader, "landmarks", landmarks)
    mirror_views = _read_indices(reader, "views", len(visible))
    confidence = np.zeros(visible.shape, np.float32)
    networks: dict[tuple[int, int], Network] = {}
    for view, landmark in np.ndindex(visible.shape):
        start = reader.offset
        reader.within = f"view {view}, landmark {landmark}: "
        network = _read_network(reader)
        confidence[view, landmark] = reader.numbers(1, "confidence")[0]
        if network is None:
            continue
        first = next(iter(networks.values()), network)
        if network.architecture != first.architecture:
            problem = "its layers differ from those of the first expert in the file"
            raise reader.error(problem, offset=start)
        networks[view, landmark] = network
    reader.within = ""
    reader.end()
    bank: dict[tuple[int, int], int] = {}
    expert_of = np.zeros(visible.shape, np.int32)
    mirrored = np.zeros(visible.shape, bool)
    for view, landmark in np.argwhere(visible).tolist():
        at = (view, landmark)
        if at not in networks:
            at = (int(mirror_views[view]) if view else 0, int(mirror_landmarks[landmark]))
            mirrored[view, landmark] = True
        if at not in networks:
            problem = f"view {view} shows landmark {landmark}, which has no expert, nor a mirror"
            raise reader.error(f"{problem} image with one")
        expert_of[view, landmark] = bank.setdefault(at, len(bank))
    if not bank:
        raise reader.error("no view shows a landmark")
    used = [networks[at] for at in bank]
    return CENScale(path, scaling, centres, visible, confidence, used, expert_of, mirrored)


def _read_indices(reader: BinaryReader, what: str, count: int) -> np.ndarray:
    start = reader.offset
    what = f"the mirror images of the {what}"
    indices = reader.matrix(what, (1, count), (_INT32,))[0]
    if ((indices < 0) | (indices >= count)).any():
        raise reader.error(f"{what} are not from 0 to {count - 1}", offset=start)
    return indices


def _read_network(reader: BinaryReader) -> Network | None:
    """The expert of a patch; None for a patch without layers."""
    reader.expect(6, "marker of a CEN patch")
    start = reader.offset
    width = reader.integer("patch width", 0, MAX_SUPPORT)
    height = reader.integer("patch height", 0, MAX_SUPPORT)
    count = reader.integer("number of layers", 0, MAX_LAYERS)
    if count == 0:
        return None
    if width != height or width == 0:
        raise reader.error(f"the patch is {width} x {height}, not square", offset=start)
    names, weights, biases = [], [], []
    inputs = width * height + 1
    for layer in range(count):
        start = reader.offset
        names.append(_ACTIVATIONS[reader.integer("activation", 0, len(_ACTIVATIONS) - 1)])
        bias = _read_floats(reader, f"biases of layer {layer}", (None, None)).ravel()
        weight = _read_floats(reader, f"weights of layer {layer}", (len(bias), inputs))
        inputs = len(weight)
        if not 1 <= inputs <= MAX_UNITS:
            raise reader.error(f"layer {layer} has {inputs} outputs", offset=start)
        weights.append(weight)
        biases.append(bias)
    if inputs != 1 or names[-1] == "none":
        problem = f"the last layer has {inputs} outputs and the activation {names[-1]}, where a"
        raise reader.error(f"{problem} response is one number that is not negative", offset=start)
    # The constant input is a bias, and the columns of the patch are put row by row.
    biases[0] = reader.float32(biases[0] + weights[0][:, 0], "biases of layer 0", offset=start)
    pixels = weights[0][:, 1:].reshape(-1, width, height).transpose(0, 2, 1)
    weights[0] = pixels.reshape(len(pixels), -1)
    return Network(width, " ".join(names), weights, biases)


def _read_floats(
    reader: BinaryReader, what: str, shape: tuple[int | None, int | None]
) -> np.ndarray:
    start = reader.offset
    return reader.float32(reader.matrix(what, shape, _FLOATS), what, offset=start)
