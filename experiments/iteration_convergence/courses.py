"""The course of a fit: the norms of its mean shifts and updates, jclnf and C++."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import Row, recording, table
from tests.support.recordings import PASSES, scales

SHOWN = (0, 1, 2, 5, 10, 20, 49)
"""Iterations that the tables show."""


class Course(NamedTuple):
    """A pass of iterations: norms for each iteration, response px and parameters."""

    mean_shift: list[float]
    update: list[float]


def recorded() -> dict[str, dict[tuple[int, str], Course]]:
    """By face, then window and pass: what C++ did with 50 iterations allowed."""
    found: dict[str, dict[tuple[int, str], Course]] = {}
    for scale in scales(recording("trace_50_iterations")):
        of_face = found.setdefault(scale.face, {})
        for name in PASSES:
            of_face[scale.window, name] = Course([], [])
        for step in scale.iterations():
            course = of_face[scale.window, PASSES[not step.rigid]]
            course.mean_shift.append(np.linalg.norm(scale.at(step, "mean_shift_ref")))
            course.update.append(np.linalg.norm(scale.at(step, "param_update")))
    return found


def own(info: dict[str, Any]) -> dict[tuple[int, str], Course]:
    return {
        (entry["window"], name): Course(
            list(entry[name]["mean_shift"]), list(entry[name]["update"])
        )
        for entry in info["windows"]
        for name in PASSES
    }


def compared(own: dict[str, Any], cpp: dict[str, Any], quantity: str) -> str:
    """Mean over the faces at some iterations, jclnf and C++; a pass that ended stays as it was."""
    lines = []
    for window, name in next(iter(cpp.values())):
        line: list[Any] = [window, name]
        for at in SHOWN:
            both = [
                np.mean(
                    [_held(getattr(face[window, name], quantity), at) for face in group.values()]
                )
                for group in (own, cpp)
            ]
            line.append(" / ".join(f"{value:.3g}" for value in both))
        lengths = [
            ", ".join(str(len(face[window, name].update)) for face in group.values())
            for group in (own, cpp)
        ]
        lines.append([*line, " / ".join(lengths)])
    header = ["window", "pass", *(f"iteration {at}" for at in SHOWN), "iterations performed"]
    return table(header, lines)


def _held(values: list[float], at: int) -> float:
    return float(values[min(at, len(values) - 1)])


def difference_rows(own: dict[str, Any], cpp: dict[str, Any]) -> list[Row]:
    pairs = [(own[face][key], cpp[face][key]) for face in cpp for key in cpp[face]]
    rows = []
    for quantity in Course._fields:
        off = [
            abs(a - b)
            for ours, theirs in pairs
            for a, b in zip(getattr(ours, quantity), getattr(theirs, quantity), strict=False)
        ]
        name = f"{quantity.replace('_', ' ')} norm, difference to C++"
        rows.append(Row(f"{name}, median", "iterations", len(off), float(np.median(off))))
        rows.append(Row(f"{name}, largest", "iterations", len(off), float(max(off))))
    other = sum(len(ours.update) != len(theirs.update) for ours, theirs in pairs)
    rows.append(Row("passes of another length than C++'s", "passes", len(pairs), other))
    return rows


def plot(own: dict[str, Any], cpp: dict[str, Any], path: Path) -> None:
    """Mean shift and update against the iteration, one colour a face."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    windows = sorted({window for window, _ in next(iter(cpp.values()))}, reverse=True)
    figure, axes = plt.subplots(2, len(windows), figsize=(9, 5), sharex="col", sharey="row")
    for column, window in enumerate(windows):
        for row, quantity in enumerate(Course._fields):
            axis = axes[row, column]
            for number, face in enumerate(cpp):
                ours = getattr(own[face][window, "nonrigid"], quantity)
                theirs = getattr(cpp[face][window, "nonrigid"], quantity)
                axis.plot(ours, color=f"C{number}", lw=1.2)
                axis.plot(theirs, "o", color=f"C{number}", mfc="none", ms=5, lw=0)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"window {window}", fontsize=10)
        axes[1, column].set_yscale("log")
        axes[1, column].set_xlabel("iteration of the non-rigid pass")
    axes[0, 0].set_ylabel("norm of all mean shifts, px")
    axes[1, 0].set_ylabel("norm of the update")
    axes[0, 0].plot([], [], "k-", lw=1.2, label="jclnf")
    axes[0, 0].plot([], [], "ko", mfc="none", ms=5, label="OpenFace C++")
    axes[0, 0].legend(fontsize=8)
    axes[0, 0].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
