"""How closely part models and confidence agree with OpenFace's C++."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import (
    Row,
    command_line,
    faces,
    missed,
    model_file,
    pivot,
    recording,
    table,
    write_results,
)
from jclnf import FitParams, FitResult, Model
from jclnf.fitting import _from_points as from_points
from jclnf.geometry import project, update
from tests.support.recordings import Face, landmarks_of, on_canvas

HERE = Path(__file__).resolve().parent

TITLE = "Part models and confidence: agreement with OpenFace 2.2 C++"
MEDIAN, TAIL = 0.05, 0.3
EQUAL = 95.0
BIN = 1 / 30
LARGE, HIERARCHICAL = "parts_large_faces", "final_fits"
KINDS = ("general", "wild")
TOO_SMALL = ("006", "078", "090")
"""Large faces whose parts were not fitted, so that their recorded landmarks are projections."""

fit_points = jax.jit(jclnf.fit_points)


class Setup(NamedTuple):
    """A model with its parts and validator, and OpenFace's settings for it."""

    model: Model
    params: FitParams

    @staticmethod
    def load(kind: str) -> "Setup":
        model = jclnf.load_openface(model_file(kind), parts=True, validator=True)
        settings = FitParams.openface_wild if kind == "wild" else FitParams.openface
        params = settings(model)
        return Setup(model, params)

    def fit(self, face: Face) -> FitResult:
        return jax.device_get(jclnf.fit(self.model, face.image, face.box, self.params))


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=-1).max())


def points_rows(setups: dict[str, Setup]) -> Iterator[Row]:
    """Parameters from given landmarks: recorded projections, and how many steps they took."""
    recorded = recording(LARGE)
    off = []
    for kind, setup in setups.items():
        for name in TOO_SMALL:
            for i, part in enumerate(setup.model.parts):
                landmarks = landmarks_of(recorded, f"clnf_{kind}/{name}")
                pose, shape = fit_points(part.model.pdm, *given(part, landmarks))
                found = np.asarray(project(part.model.pdm, pose, shape))
                off.append(worst(found, recorded[f"clnf_{kind}/{name}/part{i}/landmarks"].T))
    at = "faces too small for their parts"
    yield Row("worst landmark of a part, largest", at, len(off), max(off), 1e-3, unit="px")

    taken = steps_taken(setups)
    at = "recorded fits of small faces"
    yield Row("steps, median", at, len(taken), np.median(taken))
    yield Row("steps, most", at, len(taken), max(taken), from_points.MAX_STEPS - 1)


def given(part: jclnf.fitting.Part, landmarks: np.ndarray) -> tuple[jax.Array, jax.Array]:
    points = np.full((part.model.pdm.n_landmarks, 2), np.nan, np.float32)
    points[list(part.part_index)] = landmarks[list(part.main_index)]
    return jnp.asarray(points), jnp.asarray(~np.isnan(points[:, 0]))


def steps_taken(setups: dict[str, Setup]) -> list[int]:
    """Steps of `fit_points` for the landmarks of recorded fits and of their parts."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def counted(*arguments: Any) -> Any:
        jax.debug.callback(count)
        return update(*arguments)

    from_points.update = counted
    try:
        counting, taken = jax.jit(lambda *arguments: jclnf.fit_points(*arguments)), []
        recorded = recording(HIERARCHICAL)
        for group, kind in (("single", "general"), ("wild", "wild")):
            model = setups[kind].model
            for face in faces()[::2]:
                landmarks = landmarks_of(recorded, f"{group}/{face.name}")
                whole = (model.pdm, jnp.asarray(landmarks), jnp.ones(68, bool))
                for case in (whole, *((p.model.pdm, *given(p, landmarks)) for p in model.parts)):
                    steps = 0
                    jax.block_until_ready(counting(*case))
                    jax.effects_barrier()
                    taken.append(steps)
    finally:
        from_points.update = update
    return taken


class Outcome(NamedTuple):
    """A face's confidence, of a fit and of its recording."""

    name: str
    found: float
    recorded: float
    success: bool
    recorded_success: bool

    @property
    def bins(self) -> int:
        return round(abs(self.found - self.recorded) / BIN)


def outcome(name: str, result: FitResult, recorded: dict[str, np.ndarray]) -> Outcome:
    return Outcome(
        name,
        float(result.confidence),
        recorded[f"{name}/certainty"].item(),
        bool(result.success),
        bool(recorded[f"{name}/success"].item()),
    )


def parts_rows(
    kind: str, setup: Setup, cases: list[Face]
) -> tuple[list[Row], list[Outcome], list[list[Any]]]:
    """Whole fits of large faces, with parts and confidence; and each face's worst landmarks."""
    recorded, outcomes, lines = recording(LARGE), [], []
    names = ["the face", *(part.name for part in setup.model.parts)]
    errors: dict[str, list[float]] = {name: [] for name in names}
    for face in cases:
        result, prefix = setup.fit(face), f"clnf_{kind}/{face.name}"
        found = [result.landmarks, *(result.parts[name].landmarks for name in names[1:])]
        keys = [prefix, *(f"{prefix}/part{i}" for i in range(len(names) - 1))]
        for name, landmarks, key in zip(names, found, keys, strict=True):
            errors[name].append(worst(landmarks, landmarks_of(recorded, key)))
        outcomes.append(outcome(prefix, result, recorded))
        last = [f"{errors[name][-1]:.4f}" for name in names]
        lines.append([prefix, f"{float(result.pose.scale):.2f}", *last])
    rows = []
    for name, off in errors.items():
        at = f"{kind}, large faces", len(off)
        rows += [
            Row(f"{name}: worst landmark, median", *at, np.median(off), MEDIAN, unit="px"),
            Row(f"{name}: worst landmark, 95th percentile", *at, np.quantile(off, 0.95), TAIL,
                unit="px"),
            Row(f"{name}: worst landmark, largest", *at, max(off), unit="px"),
        ]  # fmt: skip
    return rows, outcomes, lines


def hierarchical_rows(setup: Setup) -> tuple[list[Row], list[Outcome]]:
    """Whole fits of faces most of which are too small for parts, with confidence."""
    recorded, off, outcomes = recording(HIERARCHICAL), [], []
    for face in on_canvas(faces([f"{i:03d}" for i in range(40)])):
        result = setup.fit(face)
        off.append(worst(result.landmarks, landmarks_of(recorded, f"hier/{face.name}")))
        outcomes.append(outcome(f"hier/{face.name}", result, recorded))
    at = "hier", len(off)
    rows = [
        Row("the face: worst landmark, median", *at, np.median(off), MEDIAN, unit="px"),
        Row("the face: worst landmark, 95th percentile", *at, np.quantile(off, 0.95), TAIL,
            unit="px"),
        Row("the face: worst landmark, largest", *at, max(off), unit="px"),
    ]  # fmt: skip
    return rows, outcomes


def confidence_rows(where: str, outcomes: list[Outcome]) -> Iterator[Row]:
    bins = np.array([one.bins for one in outcomes])
    at = where, len(outcomes)
    yield Row("equal to the recorded one", *at, 100 * (bins == 0).mean(), at_least=EQUAL, unit="%")
    yield Row("bins off, most", *at, int(bins.max()), 1)
    wrong = sum(one.success != one.recorded_success for one in outcomes)
    yield Row("successes decided differently", *at, wrong, 0)


def validator_outcomes(setup: Setup, large: list[Face]) -> list[Outcome]:
    """The confidence alone, of the recorded landmarks."""
    look = jax.jit(lambda *arguments: setup.model.confidence(*arguments))
    outcomes = []
    small = on_canvas(faces([f"{i:03d}" for i in range(40)]))
    groups = [(HIERARCHICAL, "hier", small), *((LARGE, f"clnf_{kind}", large) for kind in KINDS)]
    for file, group, cases in groups:
        recorded = recording(file)
        for face in cases:
            prefix = f"{group}/{face.name}"
            expected = recorded[f"{prefix}/certainty"].item()
            if expected == 0:
                continue  # a fit that failed; the network was not asked
            landmarks = landmarks_of(recorded, prefix)
            rotation = recorded[f"{prefix}/params_global"].ravel()[1:4]
            found = float(look(face.image, jnp.asarray(landmarks), jnp.asarray(rotation)))
            outcomes.append(Outcome(prefix, found, expected, True, True))
    return outcomes


def main() -> None:
    command_line(__doc__).parse_args()
    setups = {kind: Setup.load(kind) for kind in KINDS}
    cases = on_canvas(faces(images="images_large"))
    parts: dict[str, list[Row]] = {"Parameters from landmarks": list(points_rows(setups))}
    fits, trust = (
        [],
        list(confidence_rows("recorded landmarks", validator_outcomes(setups["general"], cases)))[
            :2
        ],
    )
    listed, outcomes = [], []
    for kind, setup in setups.items():
        rows, of_fits, lines = parts_rows(kind, setup, cases)
        fits += rows
        trust += confidence_rows(f"{kind}, large faces", of_fits)
        outcomes += of_fits
        listed.append((kind, setup, lines))
    rows, of_fits = hierarchical_rows(setups["general"])
    fits += rows
    trust += confidence_rows("hier", of_fits)
    outcomes += of_fits
    parts["Whole fits with parts"] = fits
    parts["Confidence"] = trust

    every = [row for part in parts.values() for row in part]
    sentence, wrong = missed(every)
    body = [sentence]
    body += [f"## {name}\n\n{pivot(part)}" for name, part in parts.items()]
    for kind, setup, lines in listed:
        header = ["fit", "px/mm", "face", *(part.name for part in setup.model.parts)]
        body.append(f"## Worst landmarks, px: {kind}\n\n{table(header, lines)}")
    differ = [one for one in outcomes if one.bins or one.success != one.recorded_success]
    shown = [[one.name, f"{one.found:.4f}", f"{one.recorded:.4f}"] for one in differ]
    body.append(
        "## Confidences that differ\n\n"
        + (table(["fit", "found", "recorded"], shown) if shown else "None.")
    )
    write_results(HERE, TITLE, "\n\n".join(body), {"rows": every, "not met": wrong})
    if wrong:
        sys.exit(sentence)


if __name__ == "__main__":
    main()
