"""A model from OpenFace's files: the chain of lists, and the assembly of what they name.

`main_*.txt` names a detector's list and those of its parts; the detector's list names the shape
model, the patch experts of each scale and, if there is one, the rule for early termination.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jclnf.errors import JclnfError, ModelFileError
from jclnf.experts import CCNF, CEN, SVR, PatchExperts
from jclnf.fitting import Model
from jclnf.geometry import PDM
from jclnf.openface._ccnf import read_ccnf
from jclnf.openface._cen import read_cen
from jclnf.openface._early_termination import EarlyTermination
from jclnf.openface._parts import read_parts
from jclnf.openface._pdm import PDMArrays, read_pdm
from jclnf.openface._read_early_termination import read_early_termination
from jclnf.openface._read_validator import make_validator, read_validator
from jclnf.openface._svr import read_svr
from jclnf.openface._text import Entry, read_list
from jclnf.openface._validator import Validator
from jclnf.params import FitParams, to_device


class _Kind(NamedTuple):
    """A kind of patch experts."""

    read: Callable[[Sequence[Entry], int], dict[str, Any]]
    create: Callable[..., PatchExperts]
    """Makes experts of the reader's arrays."""
    settings: Callable[..., FitParams]
    """OpenFace's settings for such experts."""
    settings_wild: Callable[..., FitParams]
    """The same for a model that is meant for faces "in the wild"."""


_KINDS = {
    "PatchesCCNF": _Kind(read_ccnf, CCNF.create, FitParams.openface, FitParams.openface_wild),
    "PatchesIntensity": _Kind(read_svr, SVR.create, FitParams.openface, FitParams.openface_wild),
    "PatchesCEN": _Kind(read_cen, CEN.create, FitParams.openface_ceclm, FitParams.openface_ceclm),
}
_IGNORED = (
    "LandmarkDetector_part",
    "FaceDetConversion",
    "DetectionValidator",
    "Triangulations",
    "EarlyTermination",
)
_UNREAD = ("FaceDetConversion", "Triangulations")
_KEYWORDS = ("LandmarkDetector", "PDM", *_KINDS, *_IGNORED)

_MAIN_FILES = tuple(
    f"main_{name}.txt"
    for name in ("clnf_general", "clnf_wild", "ceclm_general", "clm_general", "clm_wild")
)
"""Main files that a folder may have; the first of these is loaded."""

FRONTAL = (0.0, 0.0, 0.0)
"""The start rotation of a face that looks into the camera."""
ROTATIONS = (
    FRONTAL,
    (0.0, -0.5236, 0.0),
    (0.0, 0.5236, 0.0),
    (0.0, -0.96, 0.0),
    (0.0, 0.96, 0.0),
    (0.0, 0.0, 0.5236),
    (0.0, 0.0, -0.5236),
    (0.0, -1.57, 0.0),
    (0.0, 1.57, 0.0),
    (0.0, -1.22, 0.698),
    (0.0, 1.22, -0.698),
)
"""The start rotations (pitch, yaw, roll; radians) that OpenFace tries for a face that it has just
found in a video."""

_MISSING = "no such file or folder; give OpenFace's main_clnf_general.txt, or its model folder"


class OpenFaceArrays(NamedTuple):
    """The contents of OpenFace's files, in NumPy arrays."""

    name: str
    """The first file's name without `main_` and ending."""
    pdm: PDMArrays
    kind: str
    """Keyword of the kind of patch experts."""
    experts: dict[str, Any]
    """Keyword arguments that make the experts."""
    early_termination: EarlyTermination | None


def load_openface(
    path: str | os.PathLike[str], *, parts: bool = False, validator: bool = False
) -> Model:
    """Load a landmark detector in OpenFace 2.2's files; its settings are OpenFace's own.

    Fits try all `ROTATIONS`, which faces turned to the side need. `FitParams.openface(model)` has
    the frontal start alone, as OpenFace's program for images does.

    Args:
        path: OpenFace's `main_*.txt`; or the detector's list that it names (`clnf_general.txt`);
            or the folder that holds them, of which the general CCNF model is taken, or else the
            one for faces in the wild, the convolutional one or an SVR one. A main file with "wild"
            in its name gets OpenFace's settings for such faces.
        parts: load the models of parts that the main file names as well, and have fits refine them
            unless their settings say otherwise (`FitParams.parts`).
        validator: load the validator that the main file names, so that fits have a confidence.
            Fits then take a little longer.

    Raises:
        ModelFileError: a file is missing, damaged, inconsistent with the others, or of a kind that
            is not supported; the message names the file and the byte or line.
    """
    model = assemble(Path(path), read_openface(path))
    main = main_file(Path(path))
    entries = read_list(main, _KEYWORDS)
    if validator:
        found = _validator(main, entries, model.pdm.n_landmarks)
        model = dataclasses.replace(model, confidence=found)
    if not parts:
        return model
    lines = [entry for entry in entries if entry.keyword == "LandmarkDetector_part"]
    if not lines:
        raise ModelFileError(main, "names no parts: load it with parts=False")
    loaded = read_parts(lines, model.pdm.n_landmarks, _part_model)
    return dataclasses.replace(model, parts=loaded, defaults=model.defaults.replace(parts=True))


def _part_model(entry: Entry) -> Model:
    # A part starts from the landmarks of its face.
    model = assemble(entry.path, read_openface(entry.path, missing=entry.missing))
    return dataclasses.replace(model, defaults=model.defaults.replace(rotations=None))


def _validator(main: Path, entries: Sequence[Entry], landmarks: int) -> Validator:
    named = [entry for entry in entries if entry.keyword == "DetectionValidator"]
    if len(named) != 1:
        raise ModelFileError(main, f"names {len(named)} validators, not one")
    arrays = read_validator(named[0].path, landmarks, missing=named[0].missing)
    return make_validator(arrays)


def assemble(path: Path, arrays: OpenFaceArrays) -> Model:
    """The model of arrays that were read from `path`."""
    try:
        pdm = PDM(**{name: to_device(array) for name, array in arrays.pdm._asdict().items()})
        kind = _KINDS[arrays.kind]
        experts = kind.create(**arrays.experts)
        settings = kind.settings_wild if "wild" in arrays.name else kind.settings
        defaults = settings(experts, arithmetic="exact").replace(rotations=ROTATIONS)
        return Model(
            pdm, experts, defaults, arrays.name, early_termination=arrays.early_termination
        )
    except JclnfError as error:
        raise ModelFileError(path, str(error)) from error


def read_openface(path: str | os.PathLike[str], *, missing: str = _MISSING) -> OpenFaceArrays:
    """Read the files of a landmark detector: as `load_openface`, without making a model."""
    main = main_file(Path(path))
    detector, entries = _follow(main, missing)
    shapes = [entry for entry in entries if entry.keyword == "PDM"]
    experts = [entry for entry in entries if entry.keyword in _KINDS]
    if len(shapes) != 1:
        raise ModelFileError(detector, f"names {len(shapes)} shape models (PDM), not one")
    kinds = {entry.keyword for entry in experts}
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "none"
        raise ModelFileError(detector, f"must name patch experts of one kind, names {found}")
    _refuse_repeats([*shapes, *experts])
    pdm = read_pdm(shapes[0].path, missing=shapes[0].missing)
    (kind,) = kinds
    arrays = _KINDS[kind].read(experts, len(pdm.mean))
    rules = [entry for entry in entries if entry.keyword == "EarlyTermination"]
    if len(rules) > 1:
        raise ModelFileError(detector, f"names {len(rules)} files of early termination")
    rule = read_early_termination(rules[0].path, missing=rules[0].missing) if rules else None
    return OpenFaceArrays(main.stem.removeprefix("main_"), pdm, kind, arrays, rule)


def offers(main: Path) -> dict[str, bool]:
    """Which of the options `parts` and `validator` of `load_openface` a main file has files for."""
    keywords = {entry.keyword for entry in read_list(main, _KEYWORDS)}
    parts, validator = "LandmarkDetector_part", "DetectionValidator"
    return {"parts": parts in keywords, "validator": validator in keywords}


def named_files(main: Path) -> list[Path]:
    """The files that a main file leads to, itself and those of its parts included; of detectors'
    lists that are missing, only the list."""
    files: dict[Path, None] = {}

    def follow(path: Path) -> None:
        if path in files:
            return
        files[path] = None
        if not os.path.isfile(path):
            return
        for entry in read_list(path, _KEYWORDS):
            if entry.keyword in ("LandmarkDetector", "LandmarkDetector_part"):
                follow(entry.path)
            elif entry.keyword not in _UNREAD:
                files[entry.path] = None

    follow(main)
    return list(files)


def main_file(path: Path) -> Path:
    """The file to begin with: `path` itself, or if it is a folder the main file that it has."""
    if not os.path.isdir(path):
        return path
    for name in _MAIN_FILES:
        if os.path.exists(path / name):
            return path / name
    try:
        found = sorted(entry for entry in os.listdir(path) if entry.startswith("main_"))
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error}") from error
    there = f"of main files there is only {', '.join(found[:10])}" if found else "no main_*.txt"
    raise ModelFileError(path, f"the folder has neither {' nor '.join(_MAIN_FILES)}: {there}")


def _follow(path: Path, missing: str) -> tuple[Path, list[Entry]]:
    """The detector's list that `path` leads to, or is, and its entries."""
    seen: set[str] = set()
    while True:
        entries = read_list(path, _KEYWORDS, missing=missing)
        seen.add(os.path.realpath(path))
        onward = [entry for entry in entries if entry.keyword == "LandmarkDetector"]
        if not onward:
            return path, entries
        if len(onward) > 1:
            raise ModelFileError(path, f"names {len(onward)} landmark detectors, not one")
        own = [e for e in entries if e.keyword not in ("LandmarkDetector", *_IGNORED)]
        if own:
            problem = f"line {own[0].line}: {own[0].keyword} in a file that names another detector"
            raise ModelFileError(path, problem)
        if os.path.realpath(onward[0].path) in seen:
            problem = f"line {onward[0].line}: the files name each other in a circle"
            raise ModelFileError(path, problem)
        path, missing = onward[0].path, onward[0].missing


def _refuse_repeats(entries: Sequence[Entry]) -> None:
    seen: dict[str, Entry] = {}
    for entry in entries:
        first = seen.setdefault(os.path.realpath(entry.path), entry)
        if first is not entry:
            problem = f"lines {first.line} and {entry.line} name the same file"
            raise ModelFileError(entry.list_path, problem)
