"""Do more iterations bring a fit nearer to OpenFace's C++, and how does it get there?

The tables of the report that started the project, whose fits did neither, made again.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import OPENFACE, Row, faces, recording, table, write_results
from experiments.iteration_convergence import courses, peaks
from jclnf import CLNF, load_openface
from jclnf.openface import FRONTAL
from tests.support.recordings import landmarks_of

HERE = Path(__file__).resolve().parent

ITERATIONS = (1, 5, 10, 20, 50)
ARITHMETICS = ("exact", "openface")
REPORTED = {1: (182.7, 409.3), 5: (186.4, 419.7), 10: (187.0, 421.5), 20: (187.2, 421.6)}
REPORTED[50] = (187.5, 421.5)
"""Mean and largest error, px, of the fits in the report that started the project."""
ASKED = 0.05

Key = tuple[str, int, str]


class Fit(NamedTuple):
    landmarks: np.ndarray
    info: dict[str, Any]


def fit_all(names: list[str]) -> dict[Key, Fit]:
    """Each face with each number of iterations from the frontal start, in both arithmetics."""
    model, fits = load_openface(OPENFACE / "model"), {}
    params = model.defaults.replace(rotations=FRONTAL)
    for arithmetic in ARITHMETICS:
        for max_iterations in ITERATIONS:
            clnf = CLNF(model, max_iterations, arithmetic=arithmetic, params=params)
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


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    recorded = recording("final_fits")
    names = sorted({key.split("/")[1] for key in recorded if key.startswith("iterations_50/")})
    fits = fit_all(names)
    error_rows, error_table = errors(fits, names)
    infos = {key: fit.info for key, fit in fits.items() if key[0] == "openface"}
    cpp = courses.recorded()
    own = {face: courses.own(infos["openface", 50, face]) for face in cpp}
    courses.plot(own, cpp, HERE / "courses.png")
    at_five = {name: infos["openface", 5, name] for name in names}
    peak_rows, near, centre = peaks.beside_recorded(at_five)
    by_number = peaks.by_iterations(
        {n: [infos["openface", n, name] for name in names] for n in ITERATIONS}
    )
    rows = [*error_rows, *courses.difference_rows(own, cpp), *peak_rows]
    listed = [[row.quantity, row.count, row.found] for row in rows[len(error_rows) :]]
    body = f"""## Distance to C++ after as many iterations ({len(names)} faces)

Asked of jclnf: a mean error of at most {ASKED} px. The report's fits are of another face.

{error_table}

## Course of {len(cpp)} fits with 50 iterations allowed, openface arithmetic (jclnf / C++)

Norm of the mean shifts of all landmarks, response-map px:

{courses.compared(own, cpp, "mean_shift")}

Norm of the parameter update (millimetres, radians and pixels together):

{courses.compared(own, cpp, "update")}

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
