"""OpenFace's text files of SVR patch experts, one for each scale.

Lines that start with `#` are comments. Matrices are rows, columns, type, then the elements row by
row. A file holds:

- the scaling, in reference pixels per millimetre; the number of views;
- for each view its centre, a 3x1 matrix of Euler angles in degrees;
- for each view which of the `n` landmarks it shows, an nx1 matrix of 0 and 1;
- for each view and landmark: 3, width and height of the patch, number of experts; for each expert
  2, its modality (0 grey levels, 1 squared gradient), its confidence, slope and bias, and the
  matrix of its weights, whose rows are the columns of the patch.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.experts import ABSENT_BIAS
from jclnf.openface._ccnf import MAX_SUPPORT, SCALING_RANGE
from jclnf.openface._text import MAX_TEXT_BYTES, Entry, read_text
from jclnf.openface._views import NumberReader, check_same, check_scales, read_views

MAX_EXPERTS = 4
"""Most experts of a patch: OpenFace's have two."""

MODALITY_NAMES = ("raw", "gradient")
"""By the number that stands for a modality in a file."""

Slot = tuple[str, int]
"""A place on the axis of experts: the modality, and which of its experts of that modality."""


@dataclass(frozen=True)
class _Expert:
    """One expert of one patch: a template `[y, x]` and three numbers."""

    slot: Slot
    confidence: np.floating
    slope: np.floating
    bias: np.floating
    weights: np.ndarray


@dataclass(frozen=True)
class SVRScale:
    """The experts of one file, with `v` views and `n` landmarks."""

    path: Path
    scaling: float
    centres: np.ndarray
    """`(v, 3)`, radians, float32."""
    visible: np.ndarray
    """`(v, n)` bool."""
    support: int
    experts: dict[tuple[int, int], list[_Expert]]
    """By view and landmark."""


def read_svr(entries: Sequence[Entry], landmarks: int) -> dict[str, Any]:
    """The keyword arguments of `jclnf.experts._svr.SVR.create`, as NumPy arrays.

    A patch's confidence is the sum of its experts'. Patches may have different experts: those that
    one lacks are put in with a factor of 1.

    Args:
        entries: the files, one for each scale in the order of the fit.
        landmarks: number of landmarks that each must have.

    Raises:
        ModelFileError: the errors of `read_svr_scale`; scales that do not go together.
    """
    check_scales(entries)
    scales = [read_svr_scale(e.path, landmarks, missing=e.missing) for e in entries]
    paths = [scale.path for scale in scales]
    check_same(paths, "other views", [scale.centres for scale in scales])
    check_same(paths, "patches of another size", [np.array(scale.support) for scale in scales])
    found = {expert.slot for s in scales for patch in s.experts.values() for expert in patch}
    slots = sorted(found, key=lambda slot: (MODALITY_NAMES.index(slot[0]), slot[1]))
    shape = (len(scales), *scales[0].visible.shape, len(slots))
    support = scales[0].support
    weights = np.zeros((*shape, support, support), np.float32)
    slope, bias = np.zeros(shape, np.float32), np.full(shape, ABSENT_BIAS, np.float32)
    confidence = np.zeros(shape[:-1], np.float32)
    for k, scale in enumerate(scales):
        for at, patch in scale.experts.items():
            for expert in patch:
                index = (k, *at, slots.index(expert.slot))
                weights[index], slope[index] = expert.weights, expert.slope
                bias[index] = expert.bias
                confidence[(k, *at)] += expert.confidence
    return {
        "scalings": tuple(scale.scaling for scale in scales),
        "modalities": tuple(name for name, _ in slots),
        "weights": weights,
        "slope": slope,
        "bias": bias,
        "centres": np.stack([scale.centres for scale in scales]),
        "visible": np.stack([scale.visible for scale in scales]),
        "confidence": confidence,
    }


def read_svr_scale(path: Path, landmarks: int, *, missing: str = "no such file") -> SVRScale:
    """Read the experts of one scale.

    Args:
        path: the file.
        landmarks: number of landmarks that it must have.
        missing: what to say if it is not there.

    Raises:
        ModelFileError: missing, not text, truncated, more than there should be, a field that
            cannot be what the format says, numbers that are not finite in float32, another number
            of landmarks, patches of different sizes, or a landmark that is visible where it has
            no experts.
    """
    reader = NumberReader(path, read_text(path, MAX_TEXT_BYTES, missing=missing))
    scaling = float(reader.numbers(1, "the scaling")[0])
    low, high = SCALING_RANGE
    if not low <= scaling <= high:
        raise reader.error(f"the scaling is {scaling:g}, not between {low:g} and {high:g}")
    centres, visible = read_views(reader, landmarks)
    experts = {}
    support = 0
    for view, landmark in np.ndindex(visible.shape):
        where = f"view {view}, landmark {landmark}"
        side, patch = _read_patch(reader, where)
        if not patch and visible[view, landmark]:
            raise reader.error(f"{where} is visible, but has no experts")
        if patch and support not in (0, side):
            sizes = f"{side} x {side} among those of {support} x {support}"
            raise reader.error(f"{where}: a patch of {sizes}")
        support = side if patch else support
        experts[view, landmark] = patch
    reader.end()
    if support == 0:
        raise reader.error("no patch has experts")
    return SVRScale(path, scaling, centres, visible, support, experts)


def _read_patch(reader: NumberReader, where: str) -> tuple[int, list[_Expert]]:
    """The side of a patch, and its experts."""
    reader.integer(f"marker of a patch ({where})", 3, 3)
    width = reader.integer(f"patch width ({where})", 0, MAX_SUPPORT)
    height = reader.integer(f"patch height ({where})", 0, MAX_SUPPORT)
    count = reader.integer(f"number of experts ({where})", 0, MAX_EXPERTS)
    if count and (width != height or width == 0):
        raise reader.error(f"{where}: the patch is {width} x {height}, not square")
    seen: Counter[str] = Counter()
    experts = []
    for _ in range(count):
        reader.integer(f"marker of an expert ({where})", 2, 2)
        modality = MODALITY_NAMES[reader.integer(f"modality ({where})", 0, 1)]
        confidence, slope, bias = reader.numbers(3, f"confidence, slope and bias ({where})")
        weights = reader.matrix(f"weights ({where})", (width, height)).T
        experts.append(_Expert((modality, seen[modality]), confidence, slope, bias, weights))
        seen[modality] += 1
    return width, experts
