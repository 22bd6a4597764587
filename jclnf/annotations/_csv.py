"""Annotations as a CSV file.

One row a face, with a header: image, x_0, y_0, x_1, y_1, ... and, if there are any, identity,
split and the face's box as x, y, w, h. Other columns are ignored, so that a table of fits can be
read. Coordinates count from 0.
"""

import csv
import io
import os
import re
from pathlib import Path

import numpy as np

from jclnf.annotations._face import AnnotatedFace
from jclnf.annotations._text import Entries, number, text_of
from jclnf.errors import AnnotationError


def read_table(path: Path) -> Entries:
    """The faces of a CSV file."""
    reader = csv.reader(io.StringIO(text_of(path), newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        column = {name: i for i, name in enumerate(header)}
        if len(column) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise AnnotationError(f"{path}, line 1: the column {twice!r} is there twice")
        points = _point_columns(path, column)
        boxes = [column[k] for k in "xywh"] if set("xywh") <= set(column) else []
        for row in reader:
            if not row:
                continue
            place = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise AnnotationError(
                    f"{place}: {len(row)} fields, but {len(header)} columns: is the file whole?"
                )
            name = row[column["image"]].strip()
            if not name:
                raise AnnotationError(f"{place}: no image is named")
            box = [row[i].strip() for i in boxes]
            yield (
                place,
                AnnotatedFace(
                    image=_image_of_table(path.parent, name),
                    landmarks=np.array([[number(place, row[i]) for i in xy] for xy in points]),
                    box=np.array([number(place, t) for t in box]) if any(box) else None,
                    identity=row[column["identity"]].strip() if "identity" in column else "",
                    split=row[column["split"]].strip() if "split" in column else "",
                ),
            )
    except csv.Error as e:
        raise AnnotationError(f"{path}, line {reader.line_num}: not a CSV file: {e}") from e


def _point_columns(path: Path, column: dict[str, int]) -> list[tuple[int, int]]:
    """Where x and y of each landmark stand."""
    named = [name for name in column if re.fullmatch(r"[xy]_\d+", name, re.ASCII)]
    n = len(named) // 2
    if "image" not in column or n == 0:
        raise AnnotationError(
            f"{path}: needs a header line with the columns image, x_0, y_0, x_1, y_1, ..."
        )
    for name in (f"{axis}_{i}" for i in range(n) for axis in "xy"):
        if name not in column:
            raise AnnotationError(f"{path}, line 1: the column {name!r} is missing")
    if len(named) > 2 * n:
        raise AnnotationError(f"{path}, line 1: {len(named)} columns of x and y are not pairs")
    return [(column[f"x_{i}"], column[f"y_{i}"]) for i in range(n)]


def _image_of_table(folder: Path, name: str) -> Path:
    beside, inside = folder / name, folder / "images" / name
    return inside if not os.path.isfile(beside) and os.path.isfile(inside) else beside
