"""How far from the annotation do fits end, on people that no model was trained on?"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jclnf
from experiments.common import Row, model_file, pivot, table, validation, write_results
from jclnf.evaluation import (
    CHUNK,
    MEASURES,
    Statistics,
    Summary,
    draw_curves,
    face_errors,
)
from jclnf.evaluation._metrics import summarise
from jclnf.openface import ROTATIONS
from jclnf.runtime import use_all_cores

HERE = Path(__file__).resolve().parent

OPENFACE = "OpenFace, general CCNF"

HEADER = ["mean", "median", "90 %", "over 10 %", "inner 51: mean", "scatter: mean", "median"]
PUBLISHED = {
    "OpenFace 2.2 C++, 1 start": (10.55, 6.14, 23.8, 21.4, 10.36, 9.70, 5.03),
    "OpenFace 2.2 C++, 11 starts": (6.12, 5.62, 8.6, 4.4, 5.03, 5.12, 4.67),
    "MediaPipe Face Mesh 0.10.21": (6.56, 6.20, 8.8, 4.0, 4.74, 5.04, 4.63),
}
"""Figures of those programs for the same faces from the same boxes, columns as in `HEADER`."""

ROUNDING, FACES = 0.06, 1.5
"""By how much the same fits may differ from the published figures: a tenth in percent, as the
least precise of them is given, and a face or two at the limit of 10 %, where a hair decides."""


class Method(NamedTuple):
    name: str
    model: jclnf.Model
    params: jclnf.FitParams


def methods(paths: list[str]) -> list[Method]:
    """The methods to measure: OpenFace's model and the bundled one, or those at the given paths."""
    if paths:
        return [method for path in paths for method in of_model(Path(path).name, load(path))]
    model = jclnf.load_openface(model_file("general"))
    params = jclnf.FitParams.openface(model)
    return [
        Method(f"{OPENFACE}, 1 start", model, params),
        Method(f"{OPENFACE}, 11 starts", model, params.replace(rotations=ROTATIONS)),
        *of_model("bundled model", jclnf.load_model()),
    ]


def load(path: str) -> jclnf.Model:
    return jclnf.load_model(path)


def of_model(name: str, model: jclnf.Model) -> list[Method]:
    """With the model's own settings: from its own start, or from one rotation and from eleven."""
    if model.start is not None:
        return [Method(f"{name}, its own start", model, model.defaults)]
    return [
        Method(f"{name}, 1 start", model, model.defaults.replace(rotations=None)),
        Method(f"{name}, 11 starts", model, model.defaults.replace(rotations=ROTATIONS)),
    ]


def headline(summary: Summary) -> tuple[float, ...]:
    """The columns of `HEADER`, in %."""
    all68, scatter = summary.measures["all_eye"], summary.measures["all_eye_corrected"]
    return (
        *(all68.mean, all68.median, all68.p90, 100 * all68.over_10),
        *(summary.measures["inner_eye"].mean, scatter.mean, scatter.median),
    )


def reproduction(found: dict[str, Summary], faces: int) -> list[Row]:
    """How far the figures of OpenFace's model in jclnf are from those of OpenFace's C++."""
    names = [*HEADER[:-1], f"scatter: {HEADER[-1]}"]
    rows = []
    for starts in ("1 start", "11 starts"):
        ours, theirs = found.get(f"{OPENFACE}, {starts}"), PUBLISHED[f"OpenFace 2.2 C++, {starts}"]
        if ours is None:
            continue
        for name, a, b in zip(names, headline(ours), theirs, strict=True):
            limit = 100 * FACES / faces if name == "over 10 %" else ROUNDING
            rows.append(Row(name, starts, faces, abs(a - b), limit, unit="%"))
    return rows


def sets_table(title: str, found: dict[str, dict[str, Statistics]]) -> str:
    """A line for each set of faces or landmarks, a column for each method."""
    sets = next(iter(found.values()))
    lines = [
        [
            f"{name} ({sets[name].faces})",
            *(
                f"{s.mean:.2f} / {s.median:.2f} / {100 * s.over_10:.1f} %"
                for s in (by_set[name] for by_set in found.values())
            ),
        ]
        for name in sets
    ]
    return table([f"{title} (faces)", *found], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="as `jclnf eval` takes it")
    args = parser.parse_args()
    use_all_cores(CHUNK)

    faces, boxes = validation()
    evaluations: dict[str, jclnf.evaluation.Evaluation] = {}
    for name, model, params in methods(args.models):
        fits = jclnf.evaluation.evaluate(model, faces, params, boxes=boxes)
        if fits.problems:
            raise SystemExit("\n".join(fits.problems.values()))
        evaluations[name] = fits
    # The same yaw for all: of one model's shape, the last one's.
    yaw = next(reversed(evaluations.values())).yaw
    found = {name: summarise(e.landmarks, e.truth, yaw) for name, e in evaluations.items()}
    errors = {name: face_errors(e.landmarks, e.truth)["all_eye"] for name, e in evaluations.items()}

    (HERE / "curves.png").write_bytes(
        draw_curves(errors, limit=15, label="mean error of a face / outer eye distance")
    )
    rows = reproduction(found, len(faces))
    compared = {name: headline(summary) for name, summary in found.items()} | PUBLISHED
    lines = [[name, *(f"{v:.2f}" for v in values)] for name, values in compared.items()]
    measures = {
        name: {MEASURES[key]: stats for key, stats in summary.measures.items()}
        for name, summary in found.items()
    }
    people = len({face.identity for face in faces})
    body = f"""{len(faces)} faces of {people} people that no model of ours was trained on, from
perturbed boxes. Errors in % of the outer eye distance. Scatter is what is left when the median
offset of each landmark from the annotation is taken away.

{table(["", *HEADER], lines)}

OpenFace C++ and MediaPipe were measured once, with those programs.

![cumulative error curves](curves.png)

## What of it (mean / median / over 10 %)

{sets_table("measure", measures)}

{sets_table("part of the face", {name: summary.groups for name, summary in found.items()})}

{sets_table("yaw, degrees", {name: summary.yaw for name, summary in found.items()})}

The yaw is that of the last method's shape model fitted to the annotation."""
    if rows:
        body += f"\n\n## Distance to the figures of OpenFace's C++\n\n{pivot(rows)}"
    numbers = {
        "rows": rows,
        "summaries": {name: dataclasses.asdict(summary) for name, summary in found.items()},
    }
    write_results(HERE, "Accuracy on annotated faces", body, numbers)


if __name__ == "__main__":
    main()
