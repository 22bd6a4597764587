"""Reading annotated faces, whatever the format."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jclnf.annotations._csv import read_table
from jclnf.annotations._dlib_xml import read_xml
from jclnf.annotations._face import AnnotatedFace
from jclnf.annotations._pts import read_folder, read_pts
from jclnf.errors import AnnotationError
from jclnf.images import near_input

MAX_LANDMARKS = 1000
"""Most landmarks of a face."""

MAX_COORDINATE = 1e6
"""No image that is read is as wide; coordinates beyond are a mistake."""

TABLE = "landmarks.csv"


def read_annotations(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    identity: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> list[AnnotatedFace]:
    """Read the annotated faces of a data set, in the order of its file; folders sorted by name.

    Images of a CSV file are looked for in its folder, and then in the folder `images` in it; those
    of an XML file in its folder. Coordinates are as `AnnotatedFace` has them, but those of .pts
    files count from 1, as the format says, and are brought to 0 here. Of an XML file, boxes marked
    as ignored are left out. A face whose landmarks extend in one direction only is refused: it has
    no size to start a fit with, or to compare an error with.

    Args:
        path: a .csv, .xml or .pts file, or a folder.
        split: only the faces of this split.
        identity: a regular expression that finds whose face it is in the image's path, from the
            folder on and without its ending: its groups, or all that it matches. If not given, the
            column `identity` of a CSV file says that, and of .pts files the outermost folder
            within `path`.
        note: called with a line on files of a folder that are left out.

    Raises:
        AnnotationError: a file is missing, damaged or of no such format; faces have different
            numbers of landmarks; a number is not finite or too large; an image that a face is in
            is missing; there are no faces (in that split).
    """
    where = Path(path)
    if not os.path.exists(where):
        near = near_input(where, _is_annotated, _annotates_a_folder)
        raise AnnotationError(f"{where}: no such file or folder{near}")
    if os.path.isdir(where):
        table = where / TABLE
        entries = read_table(table) if os.path.isfile(table) else read_folder(where, note)
    elif where.suffix.lower() == ".csv":
        entries = read_table(where)
    elif where.suffix.lower() == ".xml":
        entries = read_xml(where)
    elif where.suffix.lower() == ".pts":
        entries = read_pts(where)
    else:
        raise AnnotationError(
            f"{where}: annotations are a .csv, .xml or .pts file, or a folder with {TABLE} or "
            ".pts files"
        )
    whose, folder = _pattern(identity), where if os.path.isdir(where) else where.parent
    faces: list[AnnotatedFace] = []
    splits, first = set(), None
    for place, face in entries:
        n = len(face.landmarks)
        first = first or (place, n)
        if n != first[1]:
            raise AnnotationError(
                f"{place}: {n} landmarks, but {first[1]} in {first[0]}: keep faces of one scheme"
            )
        _check(place, face)
        splits.add(face.split)
        if split is None or face.split == split:
            if not os.path.isfile(face.image):
                raise AnnotationError(f"{place}: the image {face.image} is missing")
            if whose is not None:
                face = dataclasses.replace(face, identity=_found(whose, face.image, folder))
            faces.append(face)
    if first is None:
        wanted = f": neither {TABLE} nor .pts files" if os.path.isdir(where) else ""
        raise AnnotationError(f"{where}: no annotated faces in it{wanted}")
    if not faces:
        there = ", ".join(sorted(map(repr, splits - {""}))) or "none at all"
        raise AnnotationError(f"{where}: no faces of the split {split!r}; there are {there}")
    return faces


def _is_annotated(file: Path) -> bool:
    return file.suffix.lower() in (".csv", ".xml", ".pts")


def _annotates_a_folder(file: Path) -> bool:
    return file.name == TABLE or file.suffix.lower() == ".pts"


def _pattern(identity: str | None) -> re.Pattern[str] | None:
    try:
        return None if identity is None else re.compile(identity)
    except re.error as error:
        raise AnnotationError(f"identity: {identity!r} is no regular expression: {error}") from None


def _found(whose: re.Pattern[str], image: Path, folder: Path) -> str:
    """Whose face it is, by the image's path."""
    path = Path(os.path.relpath(image, folder)).with_suffix("").as_posix()
    match = whose.search(path)
    found = "" if match is None else " ".join(g for g in match.groups() if g) or match.group()
    if not found:
        raise AnnotationError(
            f"{image}: identity: {whose.pattern!r} finds nobody in {path!r}: give another pattern"
        )
    return found


def _check(place: str, face: AnnotatedFace) -> None:
    numbers = face.landmarks if face.box is None else np.append(face.landmarks, face.box)
    if not np.isfinite(numbers).all():
        raise AnnotationError(f"{place}: a number that is not finite: correct or remove the face")
    if np.abs(numbers).max() > MAX_COORDINATE:
        raise AnnotationError(f"{place}: {np.abs(numbers).max():g} is beyond any image's pixels")
    if len(face.landmarks) > MAX_LANDMARKS:
        raise AnnotationError(f"{place}: more than {MAX_LANDMARKS} landmarks")
    if not np.all(np.ptp(face.landmarks, axis=0) > 0):
        raise AnnotationError(f"{place}: the landmarks have no extent: correct or remove the face")
    if face.box is not None and not np.all(face.box[2:] > 0):
        raise AnnotationError(f"{place}: the box's width and height must be positive")
