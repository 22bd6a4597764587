"""OpenFace's files of CCNF patch experts: one for each scale, binary in spite of their `.txt`.

A file holds, little-endian, matrices as `BinaryReader.matrix` describes them:

- float64 scaling, in reference pixels per millimetre; int32 number of views;
- for each view its centre, a 3x1 float64 matrix of Euler angles in degrees;
- for each view which of the `n` landmarks it shows, an nx1 int32 matrix of 0 and 1;
- int32 number of window sizes; for each int32 window `k` and count, then that many similarity
  components, `k*k x k*k` matrices over the pixels of the window row by row;
- for each view and landmark a patch: int32 5, width, height, number of neurons. Without neurons
  one int32 follows. Otherwise for each neuron int32 2, int32 0, float64 norm_weight, bias and
  alpha, and a float32 matrix of weights; then a float64 beta for each component of the FIRST
  window size, and a float64 confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.errors import ModelFileError
from jclnf.openface._binary import BinaryReader, read_bytes
from jclnf.openface._text import Entry

MAX_BYTES = 2**30
MAX_SCALES = 32
MAX_VIEWS = 100
MAX_WINDOWS = 100
MAX_WINDOW = 41
MAX_COMPONENTS = 100
MAX_SUPPORT = 101
MAX_NEURONS = 10_000

SCALING_RANGE = (0.05, 20.0)
"""Reference pixels per millimetre: beyond these a face is a few pixels, or thousands, wide."""

MAX_COMPONENT = 1e6
"""Largest element of a component; OpenFace's count neighbours. Sums over a window of elements near
the end of single precision would not be finite."""

_FLOAT64, _FLOAT32, _INT32 = 6, 5, 4


@dataclass(frozen=True)
class CCNFScale:
    """The experts of one file, stacked over `v` views, `n` landmarks and at most `q` neurons.

    Neurons that a patch does not have are zero. Arrays are float32 unless said otherwise.
    """

    path: Path
    size: int
    """Bytes of the file."""
    scaling: float
    centres: np.ndarray
    """`(v, 3)`, radians."""
    visible: np.ndarray
    """`(v, n)` bool."""
    confidence: np.ndarray
    """`(v, n)`."""
    weights: np.ndarray
    """`(v, n, q, support, support)`."""
    norm_weight: np.ndarray
    """`(v, n, q)`, as are `bias` and `alpha`."""
    bias: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    """`(v, n, b)`."""
    components: dict[int, np.ndarray]
    """By window `k`: `(count, k*k, k*k)`, `1 <= count <= b`; windows without any are left out."""


def read_ccnf(entries: Sequence[Entry], landmarks: int) -> dict[str, Any]:
    """The keyword arguments of `jclnf.experts._ccnf.CCNF.create`, as NumPy arrays.

    Args:
        entries: the files, one for each scale in the order of the fit.
        landmarks: number of landmarks that each must have.

    Raises:
        ModelFileError: the errors of `read_ccnf_scale`; scales that do not go together.
    """
    if len(entries) > MAX_SCALES:
        problem = f"lists {len(entries)} files of patch experts, more than {MAX_SCALES}"
        raise ModelFileError(entries[0].list_path, problem)
    return stack([read_ccnf_scale(e.path, landmarks, missing=e.missing) for e in entries])


def stack(scales: Sequence[CCNFScale]) -> dict[str, Any]:
    """The scales as the keyword arguments of `CCNF.create`, with a first axis of scales.

    Numbers of neurons, of components and windows may differ: zero neurons and zero components
    change nothing, and are put in.

    Raises:
        ModelFileError: scales that differ in their views or the size of their patches, or so much
            in their numbers of neurons that stacking them would take far more memory than they do.
    """
    first = scales[0]
    for scale in scales[1:]:
        if scale.centres.shape != first.centres.shape or not np.allclose(
            scale.centres, first.centres, rtol=0.0, atol=1e-5
        ):
            raise ModelFileError(scale.path, f"has other views than {first.path.name}")
        if scale.weights.shape[3:] != first.weights.shape[3:]:
            raise ModelFileError(scale.path, f"has patches of another size than {first.path.name}")
    q = max(scale.alpha.shape[2] for scale in scales)
    b = max(scale.beta.shape[2] for scale in scales)
    windows = sorted({window for scale in scales for window in scale.components})
    views, n = first.visible.shape
    floats = _patch_floats(views * n, q, first.weights.shape[-1], b)
    floats += b * sum(window**4 for window in windows)
    _check_size(first.path, len(scales) * floats, sum(scale.size for scale in scales))

    def stacked(name: str, *widths: int) -> np.ndarray:
        arrays = [getattr(scale, name) for scale in scales]
        result = np.zeros((len(scales), *arrays[0].shape[:2], *widths), arrays[0].dtype)
        for target, array in zip(result, arrays, strict=True):
            target[tuple(slice(side) for side in array.shape)] = array
        return result

    components = {k: np.zeros((len(scales), b, k**2, k**2), np.float32) for k in windows}
    for index, scale in enumerate(scales):
        for window, matrices in scale.components.items():
            components[window][index, : len(matrices)] = matrices
    return {
        "scalings": tuple(scale.scaling for scale in scales),
        "centres": stacked("centres"),
        "visible": stacked("visible"),
        "confidence": stacked("confidence"),
        "weights": stacked("weights", q, *first.weights.shape[3:]),
        **{name: stacked(name, q) for name in ("norm_weight", "bias", "alpha")},
        "beta": stacked("beta", b),
        "components": components,
    }


def read_ccnf_scale(path: Path, landmarks: int, *, missing: str = "no such file") -> CCNFScale:
    """Read the experts of one scale.

    Args:
        path: the file.
        landmarks: number of landmarks that it must have.
        missing: what to say if it is not there.

    Raises:
        ModelFileError: missing, truncated, trailing bytes, a field that cannot be what the format
            says, numbers that are not finite in float32, another number of landmarks, patches of
            different sizes, or a landmark that is visible where it has no neurons.
    """
    reader = BinaryReader(path, read_bytes(path, MAX_BYTES, missing=missing))
    scaling = reader.number("scaling", *SCALING_RANGE)
    views = reader.integer("number of views", 1, MAX_VIEWS)
    centres = np.stack([_read_centre(reader) for _ in range(views)])
    visible = np.stack([_read_visibility(reader, landmarks) for _ in range(views)])
    components, betas = _read_components(reader)
    patches: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    q, support = 0, 0
    for view in range(views):
        for landmark in range(landmarks):
            start = reader.offset
            reader.within = f"view {view}, landmark {landmark}: "
            patch = _read_patch(reader, betas)
            if patch is None:
                if visible[view, landmark]:
                    raise reader.error("is visible, but its patch is empty", offset=start)
                continue
            side = patch["weights"].shape[-1]
            if support not in (0, side):
                problem = f"a patch of {side} x {side} among those of {support} x {support}"
                raise reader.error(problem, offset=start)
            support = side
            q = max(q, len(patch["alpha"]))
            floats = _patch_floats(views * landmarks, q, support, betas)
            _check_size(path, floats, reader.size)
            patches[view, landmark] = patch
    reader.within = ""
    reader.end()
    if not patches:
        raise reader.error("all patches are empty")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("norm_weight", "bias", "alpha"), (q,))
    shapes |= {"weights": (q, support, support), "beta": (betas,), "confidence": (1,)}
    arrays = {k: np.zeros((*visible.shape, *shape), np.float32) for k, shape in shapes.items()}
    for at, patch in patches.items():
        for name, values in patch.items():
            arrays[name][at][: len(values)] = values
    arrays["confidence"] = arrays["confidence"][..., 0]
    return CCNFScale(path, reader.size, scaling, centres, visible, components=components, **arrays)


def _read_centre(reader: BinaryReader) -> np.ndarray:
    start = reader.offset
    degrees = reader.matrix("the centre of a view", (3, 1), (_FLOAT64,))[:, 0]
    if not (np.abs(degrees) <= 360).all():
        raise reader.error("the centre of a view is not within 360 degrees", offset=start)
    return np.radians(degrees).astype(np.float32)


def _read_visibility(reader: BinaryReader, landmarks: int) -> np.ndarray:
    start = reader.offset
    what = "the visibility of the shape model's landmarks in a view"
    flags = reader.matrix(what, (landmarks, 1), (_INT32,))[:, 0]
    if not np.isin(flags, (0, 1)).all():
        raise reader.error(f"{what} holds other numbers than 0 and 1", offset=start)
    return flags.astype(bool)


def _read_components(reader: BinaryReader) -> tuple[dict[int, np.ndarray], int]:
    """The components by window, and how many betas a patch has: as many as the first window."""
    components: dict[int, np.ndarray] = {}
    betas = 0
    seen = set()
    for index in range(reader.integer("number of window sizes", 0, MAX_WINDOWS)):
        start = reader.offset
        window = reader.integer("window size", 1, MAX_WINDOW)
        if window in seen:
            raise reader.error(f"the window size {window} occurs twice", offset=start)
        seen.add(window)
        count = reader.integer("number of components", 0, MAX_COMPONENTS)
        if index == 0:
            betas = count
        if count > betas:
            problem = f"window {window} has {count} components, patches have {betas} betas"
            raise reader.error(problem, offset=start)
        if count:
            components[window] = np.stack([_read_component(reader, window) for _ in range(count)])
    return components, betas


def _read_component(reader: BinaryReader, window: int) -> np.ndarray:
    start = reader.offset
    side = window**2
    types = (0, _INT32, _FLOAT32, _FLOAT64)
    what = f"a component of window {window}"
    matrix = reader.float32(reader.matrix(what, (side, side), types), what, offset=start)
    if np.abs(matrix).max() > MAX_COMPONENT:
        raise reader.error(f"{what} has elements beyond {MAX_COMPONENT:g}", offset=start)
    return matrix


def _read_patch(reader: BinaryReader, betas: int) -> dict[str, np.ndarray] | None:
    """The arrays of a patch by their names in `CCNFScale`; None for an empty patch."""
    reader.expect(5, "marker of a CCNF patch")
    start = reader.offset
    width = reader.integer("patch width", 0, MAX_SUPPORT)
    height = reader.integer("patch height", 0, MAX_SUPPORT)
    count = reader.integer("number of neurons", 0, MAX_NEURONS)
    if count == 0:
        reader.skip_integer("end of an empty patch")
        return None
    if width != height or width == 0:
        raise reader.error(f"the patch is {width} x {height}, not square", offset=start)
    layout = _neuron_layout(width)
    start = reader.offset
    neurons = reader.records(layout, count, f"{count} neurons")
    expected = {"marker": 2, "kind": 0, "rows": height, "columns": width, "type": _FLOAT32}
    for name, value in expected.items():
        wrong = np.flatnonzero(neurons[name] != value)
        if wrong.size:
            index = int(wrong[0])
            assert layout.fields is not None
            at = start + index * layout.itemsize + layout.fields[name][1]
            problem = f"{name} of neuron {index} is {neurons[name][index]}, not {value}"
            raise reader.error(problem, offset=at)
    patch = {
        name: reader.float32(neurons[name], f"{name} of the neurons", offset=start)
        for name in ("norm_weight", "bias", "alpha", "weights")
    }
    return patch | {
        "beta": reader.numbers(betas, "betas"),
        "confidence": reader.numbers(1, "confidence"),
    }


@lru_cache(maxsize=16)
def _neuron_layout(side: int) -> np.dtype:
    header = [(name, "<i4") for name in ("marker", "kind")]
    header += [(name, "<f8") for name in ("norm_weight", "bias", "alpha")]
    header += [(name, "<i4") for name in ("rows", "columns", "type")]
    return np.dtype([*header, ("weights", "<f4", (side, side))])


def _patch_floats(patches: int, neurons: int, support: int, betas: int) -> int:
    """Numbers in the stacked arrays of patches."""
    return patches * (neurons * (support**2 + 3) + betas + 1)


def _check_size(path: Path, floats: int, size: int) -> None:
    """Refuse padding that asks for far more memory than the `size` bytes read from files."""
    limit = 4 * size + 64 * 2**20
    if 4 * floats > limit:
        problem = (
            f"numbers of neurons so uneven that {size} bytes would become {4 * floats} in memory"
        )
        raise ModelFileError(path, problem)
