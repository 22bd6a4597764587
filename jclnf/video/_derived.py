"""Outputs made from a finished table: smoothed numbers, Parquet, and a plot.

All of it follows from the table, so that a run that is killed here makes it again.
"""

import array
import csv
import io
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.errors import JclnfError, ParamsError
from jclnf.openface import OpenFaceTable
from jclnf.outputs import replacing, write_bytes
from jclnf.tracking import OneEuro

_POINTS = 2000
"""Points of a curve in the plot, at most: of longer videos, means over stretches are shown."""


def rows_of(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The column names of a table with each of its rows."""
    with path.open(newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        names = next(reader)
        for row in reader:
            yield names, row


def number(cell: str) -> float:
    """What a cell of a table holds, NaN if nothing was measured."""
    return float(cell) if cell else math.nan


def one_euro(text: str) -> OneEuro:
    """The filter that `one-euro`, or `one-euro:MINCUTOFF,BETA`, names. Raises ParamsError."""
    name, _, numbers = text.partition(":")
    try:
        values = [float(number) for number in numbers.split(",")] if numbers else []
        if name != "one-euro" or len(values) > 2:
            raise ValueError
    except ValueError:
        raise ParamsError(
            f"{text!r} is no smoothing: give one-euro, or one-euro:MINCUTOFF,BETA such as "
            "one-euro:1.0,0.05"
        ) from None
    return OneEuro(*values)


def write_smoothed(table: Path, out: Path, smoothing: str, form: OpenFaceTable) -> None:
    """The table with all measurements smoothed, each face on its own; what was not seen is as it
    was, and a face that is seen again begins anew. Action units stay as they are.

    Args:
        table: the table.
        out: the file.
        smoothing: as `one_euro` takes it.
        form: how the table was written.
    """
    filters: dict[str, OneEuro] = {}
    kept = form.first
    with replacing(out) as part, part.open("w", newline="") as file:
        for first, (names, row) in zip(itertools.count(), rows_of(table)):
            if first == 0:
                file.write(form.separator.join(names) + "\n")
            face = filters.setdefault(row[1], one_euro(smoothing))
            if row[4] == "1":
                values = [number(cell) for cell in row]
                units = len(values) - form.units
                smooth = face.step(values[2], np.array(values[kept:units]))
                smoothed = form.line([*values[:kept], *smooth.tolist(), *values[units:]])
                cells = smoothed.rstrip("\n").split(form.separator)[kept:]
                row = [*row[:kept], *cells]
            else:
                face.reset()
            file.write(form.separator.join(row) + "\n")


def write_parquet(table: Path, out: Path) -> None:
    """The table as a Parquet file, in single precision, with nulls where nothing was measured; a
    stretch of rows at a time.

    Raises:
        JclnfError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise JclnfError("Parquet needs pyarrow: pip install 'jclnf[parquet]'") from None
    whole = {"frame": pa.int32(), "face_id": pa.int32(), "success": pa.int8()}
    whole["cut"] = pa.int8()
    whole["timestamp"] = pa.float64()
    rows = rows_of(table)
    first = next(rows, None)
    if first is None:
        raise JclnfError(f"{table.name}: has no rows, so there is no Parquet file")
    fields = [pa.field(name, whole.get(name, pa.float32())) for name in first[0]]
    kinds: list[Any] = [int if pa.types.is_integer(field.type) else float for field in fields]
    schema, rows = pa.schema(fields), itertools.chain([first], rows)
    with replacing(out) as part, pq.ParquetWriter(part, schema) as writer:
        while group := [row for _, row in itertools.islice(rows, 4096)]:
            columns = zip(*group, strict=True)
            arrays = [
                pa.array([(kind(cell) if cell else None) for cell in cells], field.type)
                for field, kind, cells in zip(fields, kinds, columns, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


PLOTTED = (
    ("confidence", ("confidence",)),
    ("head rotation, degrees", ("pose_Rx", "pose_Ry", "pose_Rz")),
    ("distance, mm", ("pose_Tz",)),
    ("gaze, degrees", ("gaze_angle_x", "gaze_angle_y")),
    ("nose tip, px", ("x_30", "y_30")),
    ("mouth, px", ("mouth opening",)),
    ("action units", ("AU04_r", "AU12_r", "AU45_r")),
)
"""Panels of the plot, with the columns that they show."""


def write_plot(table: Path, out: Path) -> None:
    """A plot of confidence, pose and some landmarks over time; the faces in colours of their own.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    series = _series(table)
    known = {name for face in series.values() for name in face}
    panels = [(title, [name for name in names if name in known]) for title, names in PLOTTED]
    panels = [(title, names) for title, names in panels if names]
    figure = Figure(figsize=(10, 1.7 * max(1, len(panels))), dpi=100, layout="constrained")
    grid = figure.subplots(max(1, len(panels)), sharex=True, squeeze=False)[:, 0]
    styles = ("-", "--", ":")
    for axes, (title, names) in zip(grid, panels, strict=False):
        for number, (face, values) in enumerate(sorted(series.items())):
            for name, style in zip(names, styles, strict=False):
                label = name if len(series) == 1 else f"{face}: {name}"
                axes.plot(
                    values["timestamp"], values[name], style, color=f"C{number % 10}", label=label,
                    linewidth=0.9,
                )  # fmt: skip
        axes.set_ylabel(title, fontsize="small")
        if names == ["confidence"]:
            axes.set_ylim(-0.05, 1.05)
        axes.grid(alpha=0.3)
        if len(series) * len(names) <= 8:
            axes.legend(loc="upper right", fontsize="x-small")
    grid[-1].set_xlabel("time, s")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes(out, data.getvalue())


def _series(table: Path) -> dict[int, dict[str, np.ndarray]]:
    """By face the columns of the plot, gaps as NaN, reduced to `_POINTS`."""
    wanted = {name for _, names in PLOTTED for name in names} | {"timestamp"}
    # Lists of floats of a video of hours would take 100 MB.
    lists: dict[int, dict[str, array.array[float]]] = {}
    at: dict[str, int] = {}
    for names, row in rows_of(table):
        at = at or {name: i for i, name in enumerate(names)}
        if not row[at["face_id"]]:
            continue  # a frame without a face
        face = lists.setdefault(int(row[at["face_id"]]), {})
        seen = row[at["success"]] == "1"
        for name in wanted & set(at):
            value = number(row[at[name]])
            hidden = not seen and name not in ("timestamp", "confidence")
            degrees = name.startswith(("pose_R", "gaze_angle"))
            value = math.degrees(value) if degrees else value
            column = face.setdefault(name, array.array("d"))
            column.append(math.nan if hidden else value)
        if {"y_62", "y_66"} <= set(at):
            opening = number(row[at["y_66"]]) - number(row[at["y_62"]])
            column = face.setdefault("mouth opening", array.array("d"))
            column.append(opening if seen else math.nan)
    return {
        face: {name: _reduced(np.array(values)) for name, values in columns.items()}
        for face, columns in lists.items()
    }


def _reduced(values: np.ndarray) -> np.ndarray:
    stretch = -(-len(values) // _POINTS)
    if stretch <= 1:
        return values
    filled = np.concatenate([values, np.full(-len(values) % stretch, np.nan)]).reshape(-1, stretch)
    known = np.isfinite(filled)
    total = np.where(known, filled, 0.0).sum(1)
    count = known.sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
