"""Do more iterations bring a fit nearer to OpenFace's C++, and how does it get there?

The tables of the report that started the project, whose fits did neither, made again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import (  # noqa: E402
    OPENFACE,
    PASSES,
    Row,
    faces,
    landmarks_of,
    recording,
    scales,
    table,
    write_results,
)

from jclnf import CLNF  # noqa: E402

ITERATIONS = (1, 5, 10, 20, 50)
ARITHMETICS = ("exact", "openface")
REPORTED = {1: (182.7, 409.3), 5: (186.4, 419.7), 10: (187.0, 421.5), 20: (187.2, 421.6)}
REPORTED[50] = (187.5, 421.5)
"""Mean and largest error, px, of the fits in the report that started the project."""
OFFENDERS = (48, 1, 6)
"""Landmarks whose response peaks the report found to stay off-centre."""
ASKED = 0.05
SHOWN = (0, 1, 2, 5, 10, 20, 49)

Key = tuple[str, int, str]


class Fit(NamedTuple):
    landmarks: np.ndarray
    info: dict[str, Any]


class Course(NamedTuple):
    """What a pass of iterations did: norms for each iteration, response px and parameters."""

    mean_shift: list[float]
    update: list[float]


def fit_all(names: list[str]) -> dict[Key, Fit]:
    """Each face with each number of iterations, in both arithmetics."""
    fits = {}
    for arithmetic in ARITHMETICS:
        for max_iterations in ITERATIONS:
            clnf = CLNF(OPENFACE / "model", max_iterations, arithmetic=arithmetic)
            for face in faces(names):
                fits[arithmetic, max_iterations, face.name] = Fit(*clnf.fit(face.image, face.box))
    return fits


def errors(fits: dict[Key, Fit], names: list[str]) -> tuple[list[Row], str]:
    """The report's first table."""
    recorded, rows, lines = recording("final_fits"), [], []
    for n in ITERATIONS:
        line: list[Any] = [n, *(f"{number} px" for number in REPORTED[n])]
        for arithmetic in ARITHMETICS:
            found = [fits[arithmetic, n, name] for name in names]
            off = np.stack(
                [
                    np.linalg.norm(
                        fit.landmarks - landmarks_of(recorded, f"iterations_{n}/{i}"), axis=1
                    )
                    for fit, i in zip(found, names, strict=True)
                ]
            )
            where = f"{arithmetic} arithmetic, {n} iterations"
            mean = Row("mean error", where, len(names), off.mean(), ASKED, unit="px")
            largest = Row("largest error", where, len(names), off.max(), unit="px")
            converged = sum(fit.info["converged"] for fit in found)
            rows += [mean, largest, Row("converged", where, len(names), converged)]
            line += [mean.found, largest.found, f"{converged} of {len(names)}"]
        lines.append(line)
    header = ["iterations", "report: mean", "largest"]
    for arithmetic in ARITHMETICS:
        header += [f"{arithmetic}: mean", "largest", "converged"]
    return rows, table(header, lines)


def recorded_courses() -> dict[str, dict[tuple[int, str], Course]]:
    """By face, then window and pass: what C++ did with 50 iterations allowed."""
    courses: dict[str, dict[tuple[int, str], Course]] = {}
    for scale in scales(recording("trace_50_iterations")):
        of_face = courses.setdefault(scale.face, {})
        for name in PASSES:
            of_face[scale.window, name] = Course([], [])
        for step in scale.iterations():
            course = of_face[scale.window, PASSES[not step.rigid]]
            course.mean_shift.append(np.linalg.norm(scale[f"{step.prefix}/mean_shift_ref"]))
            course.update.append(np.linalg.norm(scale[f"{step.prefix}/param_update"]))
    return courses


def own_courses(info: dict[str, Any]) -> dict[tuple[int, str], Course]:
    return {
        (entry["window"], name): Course(
            list(entry[name]["mean_shift"]), list(entry[name]["update"])
        )
        for entry in info["windows"]
        for name in PASSES
    }


def courses_table(own: dict[str, Any], cpp: dict[str, Any], quantity: str) -> str:
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


def course_rows(own: dict[str, Any], cpp: dict[str, Any]) -> list[Row]:
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


def peak_tables(fits: dict[Key, Fit], names: list[str]) -> tuple[list[Row], str, str, str]:
    """Where the peaks of the response maps lie, jclnf and C++, 5 iterations; then ours by number."""
    own: dict[tuple[int, str], list[float]] = {}
    cpp: dict[tuple[int, str], list[float]] = {}
    own_centre: dict[tuple[int, int], list[float]] = {}
    cpp_centre: dict[tuple[int, int], list[float]] = {}
    same = total = 0
    for scale in scales(recording("stages_clnf_general")):
        entry = fits["openface", 5, scale.face].info["windows"][scale.index]
        maps = scale.maps("responses")
        seen = maps.any((1, 2))
        peaks = np.stack(np.divmod(maps.reshape(len(maps), -1).argmax(1), scale.window), 1)[:, ::-1]
        from_centre = peaks - (scale.window - 1) / 2
        same += int(np.sum(np.all(from_centre == entry["peak_offsets"], axis=1)[seen]))
        total += int(seen.sum())
        for i in OFFENDERS:
            key = scale.window, i
            own_centre.setdefault(key, []).append(np.linalg.norm(entry["peak_offsets"][i]))
            cpp_centre.setdefault(key, []).append(np.linalg.norm(from_centre[i]))
        for step in scale.iterations():
            name = PASSES[not step.rigid]
            away = np.linalg.norm(peaks - scale[f"{step.prefix}/offsets"], axis=1)[seen].mean()
            cpp.setdefault((scale.window, f"{name} {step.number}"), []).append(away)
            away = _held(entry[name]["peak_distance"], step.number)
            own.setdefault((scale.window, f"{name} {step.number}"), []).append(away)
    rows = [Row("response maps with the same peak pixel as C++'s", "stages", total, same)]
    windows = sorted({window for window, _ in cpp}, reverse=True)
    steps = [f"{name} {number}" for name in PASSES for number in (0, 2, 4)]
    near = table(
        ["window", *steps],
        [[w, *(_both(own[w, step], cpp[w, step]) for step in steps)] for w in windows],
    )
    centre = table(
        ["window", *(f"landmark {i}" for i in OFFENDERS)],
        [[w, *(_both(own_centre[w, i], cpp_centre[w, i]) for i in OFFENDERS)] for w in windows],
    )
    lines = []
    for n in ITERATIONS:
        ends = [
            [
                entry["nonrigid"]["peak_distance"][-1]
                for entry in fits["openface", n, i].info["windows"]
            ]
            for i in names
        ]
        lines.append([n, *(f"{away:.3g}" for away in np.mean(ends, axis=0))])
    by_number = table(["iterations", *(f"window {window}" for window in windows)], lines)
    return rows, near, centre, by_number


def _both(own: list[float], cpp: list[float]) -> str:
    return f"{np.mean(own):.3g} / {np.mean(cpp):.3g}"


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
        axes[0, column].set_ylim(bottom=0)
        axes[1, column].set_yscale("log")
        axes[1, column].set_xlabel("iteration of the non-rigid pass")
    axes[0, 0].set_ylabel("norm of all mean shifts, px")
    axes[1, 0].set_ylabel("norm of the update")
    axes[0, 0].plot([], [], "k-", lw=1.2, label="jclnf")
    axes[0, 0].plot([], [], "ko", mfc="none", ms=5, label="OpenFace C++")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    recorded = recording("final_fits")
    names = sorted({key.split("/")[1] for key in recorded if key.startswith("iterations_50/")})
    fits = fit_all(names)
    error_rows, error_table = errors(fits, names)
    cpp = recorded_courses()
    own = {face: own_courses(fits["openface", 50, face].info) for face in cpp}
    rows = [*error_rows, *course_rows(own, cpp)]
    peak_rows, near, centre, by_number = peak_tables(fits, names)
    rows += peak_rows
    plot(own, cpp, HERE / "courses.png")
    listed = [[row.quantity, row.count, row.found] for row in rows[len(error_rows) :]]
    body = f"""## Distance to C++ after as many iterations ({len(names)} faces)

Asked of jclnf: a mean error of at most {ASKED} px. The report's fits are of another face.

{error_table}

## Course of {len(cpp)} fits with 50 iterations allowed, openface arithmetic (jclnf / C++)

Norm of the mean shifts of all landmarks, response-map px:

{courses_table(own, cpp, "mean_shift")}

Norm of the parameter update:

{courses_table(own, cpp, "update")}

![mean shift and update against the iteration](courses.png)

## Peaks of the response maps, 5 iterations, {len(names)} faces (jclnf / C++)

Mean distance of the landmarks from the peaks of their maps, response-map px, by iteration:

{near}

Distance of the peak from the centre of the map, for the landmarks that the report names:

{centre}

Distance of the landmarks from their peaks when jclnf's fits end, by the iterations allowed:

{by_number}

## Differences

{table(["", "over", "measured"], listed)}"""
    write_results(HERE, "Convergence with the number of iterations", body, {"rows": rows})


if __name__ == "__main__":
    main()
