"""OpenFace's files of action units: what a face is described by, and its linear predictors.

`main_dynamic_svms.txt` (videos) and `main_static_svms.txt` (photographs) name a list of predictors,
the shape model and the triangles of the face's surface. A predictor is a regressor of intensity or
a classifier of presence, static or dynamic: dynamic ones take a person's median away first.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclnf.errors import ModelFileError, near_file
from jclnf.openface._binary import FLOAT32_MAX, BinaryReader, read_bytes
from jclnf.openface._install import ACTION_UNITS_FOLDER, models_folder
from jclnf.openface._pdm import PDMArrays, read_pdm
from jclnf.openface._text import MAX_LIST_BYTES, Entry, TextReader, read_each, read_list, read_text

AU_LANDMARKS = 68
AU_CELLS = 12
"""Cells of the descriptor of appearance along each side."""
AU_CHANNELS = 31
"""Numbers of each cell."""

_ENTRIES = {False: "main_dynamic_svms.txt", True: "main_static_svms.txt"}
_KEYWORDS = ("AUPredictor", "PDM", "Triangulation")
_KINDS = {0: (False, False), 1: (False, True), 4: (True, False), 5: (True, True)}
"""Of each kind of file, whether it is a classifier, and whether it is dynamic."""
_NAME = re.compile(r"AU\d\d")
_MAX_BYTES = 2**22
_MAX_PREDICTORS = 200
_MAX_TRIANGLES = 1000
_INT32, _FLOAT64 = 4, 6


class Predictor(NamedTuple):
    """A file: `(x - means) weights + bias` of a face's numbers `x`."""

    name: str
    """Of the action unit, such as AU01."""
    presence: bool
    """Whether it is a classifier of presence, or else a regressor of intensity."""
    dynamic: bool
    """Whether the person's median is taken away from `x` as well."""
    cutoff: float
    """Part of a person's frames in which a dynamic regressor's intensity is taken to be 0; -1 of
    all others."""
    means: np.ndarray
    """`(d,)` float64."""
    weights: np.ndarray
    """`(d,)` float64."""
    bias: float
    classes: tuple[float, float]
    """What a classifier says above 0, and what otherwise."""


class ActionUnitArrays(NamedTuple):
    """The contents of the files, in NumPy arrays."""

    name: str
    """The first file's name without `main_` and ending."""
    pdm: PDMArrays
    triangles: np.ndarray
    """`(t, 3)` int32: landmarks, from 0."""
    predictors: tuple[Predictor, ...]


def find_action_units(
    path: str | os.PathLike[str] | None = None,
    *,
    static: bool = False,
    model: str | os.PathLike[str] | None = None,
) -> Path:
    """The file that OpenFace's predictors of action units begin with.

    Args:
        path: that file; or the folder `AU_predictors`, or one that holds it. If None, it is looked
            for beside the landmark detector's files, and then where models are installed.
        static: the predictors for photographs, or else those for videos.
        model: main file or folder of the landmark detector, or any other file.

    Raises:
        ModelFileError: there is none.
    """
    if path is not None:
        path = Path(path)
        if not os.path.isdir(path):
            return path
        places = [path, path / ACTION_UNITS_FOLDER]
    else:
        folder = None if model is None else Path(model)
        folder = folder.parent if folder is not None and not os.path.isdir(folder) else folder
        near = [] if folder is None else [folder, folder.absolute().parent]
        places = [place / ACTION_UNITS_FOLDER for place in (*near, models_folder())]
    for place in places:
        if os.path.isfile(place / _ENTRIES[static]):
            return place / _ENTRIES[static]
    remedy = (
        "give OpenFace's folder of them (--au-models), or install it beside the landmark "
        "detectors: jclnf models install openface --from OpenFace"
    )
    if path is not None:
        raise ModelFileError(
            path, f"holds no {_ENTRIES[static]}{near_file(path / _ENTRIES[static])}: {remedy}"
        )
    looked = ", ".join(map(str, places))
    raise ModelFileError(
        ACTION_UNITS_FOLDER, f"no predictors of action units were found (in {looked}): {remedy}"
    )


def read_action_units(path: str | os.PathLike[str]) -> ActionUnitArrays:
    """Read predictors of action units, and what they need.

    Args:
        path: `main_dynamic_svms.txt` or `main_static_svms.txt`.

    Raises:
        ModelFileError: a file is missing, damaged, of another kind, or does not go together with
            the others; the message names the file and the byte or line.
    """
    path = Path(path)
    named = read_each(path, _KEYWORDS, remedy=f"; OpenFace's {_ENTRIES[False]} does")
    pdm = read_pdm(named["PDM"].path, missing=named["PDM"].missing)
    if len(pdm.mean) != AU_LANDMARKS:
        problem = f"has {len(pdm.mean)} landmarks, the predictors are about {AU_LANDMARKS}"
        raise ModelFileError(named["PDM"].path, problem)
    size = AU_CELLS * AU_CELLS * AU_CHANNELS + 3 * AU_LANDMARKS + pdm.components.shape[2]
    triangles = _read_triangles(named["Triangulation"])
    predictors = _read_predictors(named["AUPredictor"], size)
    name = path.stem.removeprefix("main_")
    return ActionUnitArrays(name, pdm, triangles, predictors)


def named_action_unit_files(path: Path) -> list[Path]:
    """The files that `main_dynamic_svms.txt` and the like lead to, itself included."""
    entries = read_list(path, _KEYWORDS)
    lists = [entry for entry in entries if entry.keyword == "AUPredictor"]
    return [path, *(e.path for e in entries), *(p for e in lists for p, _, _ in _lines(e))]


def _lines(entry: Entry) -> list[tuple[Path, str, int]]:
    """File, name of the action unit, and number of each line of a list of predictors."""
    path = entry.path
    text = read_text(path, MAX_LIST_BYTES, missing=entry.missing).decode("utf-8")
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        *file, name = line.rsplit(maxsplit=1)
        if not file or not _NAME.fullmatch(name):
            problem = (
                f"line {number}: does not end in the name of one action unit, such as AU01: a list "
                "of OpenFace's predictors is expected here"
            )
            raise ModelFileError(path, problem)
        lines.append((path.parent / file[0].strip().replace("\\", "/"), name, number))
        if len(lines) > _MAX_PREDICTORS:
            raise ModelFileError(path, f"lists over {_MAX_PREDICTORS} predictors")
    if not lines:
        raise ModelFileError(path, "lists no predictors")
    return lines


def _read_predictors(entry: Entry, size: int) -> tuple[Predictor, ...]:
    found: dict[tuple[str, bool], Predictor] = {}
    for file, name, number in _lines(entry):
        missing = (
            f"no such file; {entry.path.name}, line {number} names it: keep OpenFace's folder "
            f"{ACTION_UNITS_FOLDER} together, with all its subfolders"
        )
        one = read_predictor(file, name, size, missing=missing)
        if (name, one.presence) in found:
            what = "presence" if one.presence else "intensity"
            problem = f"line {number}: a second predictor of the {what} of {name}"
            raise ModelFileError(entry.path, problem)
        found[name, one.presence] = one
    return tuple(found.values())


def read_predictor(path: Path, name: str, size: int, *, missing: str = "no such file") -> Predictor:
    """Read a predictor.

    Args:
        path: the file.
        name: of the action unit.
        size: numbers that describe a face.
        missing: what to say if the file is not there.

    Raises:
        ModelFileError: as `read_action_units`.
    """
    reader = BinaryReader(path, read_bytes(path, _MAX_BYTES, missing=missing))
    kind = reader.integer("kind of predictor", -(2**31), 2**31 - 1)
    if kind not in _KINDS:
        known = ", ".join(map(str, _KINDS))
        raise reader.error(f"kind of predictor is {kind}, not one of {known}", offset=0)
    presence, dynamic = _KINDS[kind]
    cutoff = -1.0
    if dynamic and not presence:
        cutoff = reader.number("cutoff", -1.0, 1.0)
        # A part of all frames that is whole would be the one beyond the last.
        if cutoff != -1.0 and not 0 <= cutoff < 1:
            raise reader.error(f"cutoff is {cutoff:g}, not from 0 to below 1", offset=4)
    means = _vector(reader, "means", (1, size))
    weights = _vector(reader, "weights", (size, 1))
    bias = reader.number("bias")
    classes = (0.0, 0.0)
    if presence:
        classes = (
            reader.number("class above 0", 0.0, 1.0),
            reader.number("class below 0", 0.0, 1.0),
        )
        if sorted(classes) != [0, 1]:
            raise reader.error(f"the classes are {classes[0]:g} and {classes[1]:g}, not 0 and 1")
    reader.end()
    return Predictor(name, presence, dynamic, cutoff, means, weights, bias, classes)


def _vector(reader: BinaryReader, what: str, shape: tuple[int, int]) -> np.ndarray:
    start = reader.offset
    values = reader.matrix(what, shape, (_FLOAT64,)).reshape(-1)
    if not (np.abs(values) <= FLOAT32_MAX).all():
        raise reader.error(f"{what}: not a finite number of a sensible size", offset=start)
    return np.array(values, np.float64)


def _read_triangles(entry: Entry) -> np.ndarray:
    data = read_text(entry.path, MAX_LIST_BYTES, missing=entry.missing)
    reader = TextReader(entry.path, data)
    values = reader.matrix("the triangles", (None, 3), (_INT32,))
    reader.end()
    if not 1 <= len(values) <= _MAX_TRIANGLES:
        raise reader.error(f"has {len(values)} triangles, not 1 to {_MAX_TRIANGLES}")
    whole = values == np.rint(values)
    if not (whole & (values >= 0) & (values < AU_LANDMARKS)).all():
        raise reader.error(f"a corner of a triangle is no landmark from 0 to {AU_LANDMARKS - 1}")
    return values.astype(np.int32)
