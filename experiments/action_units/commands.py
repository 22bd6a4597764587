"""Whole commands beside what OpenFace's programs wrote: action units of two clips and four
photographs, from files to tables.

    python -m experiments.action_units.commands

From recorded landmarks, action units are OpenFace's to the digit (`tests/test_action_units.py`):
whatever differs here comes from landmarks. So there is, beside the commands, what landmarks that
are off by noise do to recorded ones; and of each class that differs and of the photographs' largest
differences, which landmark makes most of it. Needs the development data.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import jclnf
from experiments.action_units.tracing import Change, cause, changes, judged, zeros
from experiments.common import OPENFACE, Row, command_line, model_file, pivot, table, write_results
from jclnf.action_units import ActionUnits, describe_openface, load_action_units
from jclnf.video import open_source
from tests.support.recordings import csv_rows

HERE = Path(__file__).resolve().parent / "commands"
RECORDED = OPENFACE / "au"
PREDICTORS = OPENFACE / "AU_predictors"
CLIPS = ("default", "changeLighting")
PHOTOGRAPHS = (1, 3, 4, 5)
DETECTORS = (
    *("--model", str(model_file("general"))),
    *("--detector", f"mtcnn:{OPENFACE / 'model'}"),
)
MOVES = 0.1
"""Standard deviation of an intensity that moves."""
NOISE = 0.01
"""Pixels."""
CHANGED = (
    *("clip", "class", "frames", "frame", "recorded", "found", "by medians"),
    *("landmark", "replaced moves it", "was off, px"),
)
PLOTTED = ("AU01_r", "AU12_r", "AU25_r", "AU45_r")


class Table(NamedTuple):
    """What a table says."""

    units: np.ndarray
    """`(f, k)`"""
    landmarks: np.ndarray
    """`(f, 68, 2)`"""


def read(path: Path, columns: list[str]) -> Table:
    rows = csv_rows(path)
    units = np.array([[float(row[name]) for name in columns] for row in rows])
    xy = [[[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)] for row in rows]
    return Table(units, np.array(xy))


def command(*args: str) -> None:
    """Run a command of jclnf in a process of its own."""
    options = ["--openface-csv", "--aus", "--full-precision"]
    subprocess.run([sys.executable, "-m", "jclnf", *args, *options], check=True)


def colour_frames(clip: str) -> Iterator[np.ndarray]:
    """The frames of one of the clips."""
    for frame in open_source(OPENFACE / "samples" / f"{clip}.wmv").frames():
        assert frame.image is not None
        yield frame.image


def recorded_landmarks(clip: str) -> np.ndarray:
    """`(f, 68, 2)` float32"""
    landmarks = np.load(RECORDED / f"video_dyn_{clip}.npz")["landmarks"]
    return landmarks.reshape(-1, 2, 68).transpose(0, 2, 1).astype(np.float32)


def correlation(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.corrcoef(found, expected)[0, 1])


def of_clip(
    model: ActionUnits, clip: str, found: np.ndarray, expected: np.ndarray, label: str = ""
) -> list[Row]:
    """Figures over the action units of a clip: the worst of each."""
    n, count = len(model.intensities), len(expected)
    apart = np.abs(found - expected)[:, :n]
    moving = np.flatnonzero(expected[:, :n].std(0) >= MOVES)
    equal = 100 * (found[:, n:] == expected[:, n:]).mean(0)
    asked = not label
    return [
        Row(
            f"{label}intensity, median difference of the worst AU", clip, count,
            float(np.median(apart, 0).max()), at_most=0.02 if asked else None,
        ),
        Row(
            f"{label}intensity, 99th percentile of the worst AU", clip, count,
            float(np.quantile(apart, 0.99, axis=0).max()), at_most=0.2 if asked else None,
        ),
        Row(
            f"{label}correlation over time, least of the AUs that move", clip, len(moving),
            min(correlation(found[:, j], expected[:, j]) for j in moving),
            at_least=0.99 if asked else None,
        ),
        Row(
            f"{label}classes equal, AU that differs most", clip, count, float(equal.min()),
            at_least=99.0 if asked else None, unit="%",
        ),
        Row(f"{label}classes equal, all AUs", clip, count, float(equal.mean()), unit="%"),
    ]  # fmt: skip


def traced(model: ActionUnits, image: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> list:
    """The intensity that differs most, by how much, the landmark whose replacement by the recorded
    one removes most of it, by how much that moves it, and how far it was off."""
    n = len(model.intensities)
    one, other = (
        np.clip(model.predict(describe_openface(model, image, points).descriptor)[:n], 0, 5)
        for points in (ours, theirs)
    )
    worst = int(np.abs(one - other).argmax())
    landmark, removes, off = cause(model, image, ours, theirs, worst)
    moved = f"{one[worst] - other[worst]:+.3f}"
    return [model.intensities[worst], moved, landmark, f"{removes:+.3f}", f"{off:.3f}"]


def line_of(clip: str, change: Change) -> list:
    """A line of the table of classes that differ."""
    frames = f"{change.first}-{change.last}" if change.last > change.first else str(change.first)
    numbers = (change.theirs, change.ours, change.by_medians)
    landmark, removes, off = change.cause
    cells = [*(f"{number:+.3f}" for number in numbers), landmark, f"{removes:+.3f}", f"{off:.3f}"]
    return [clip, change.name, frames, change.frame, *cells]


def photographs(static: ActionUnits, out: Path) -> tuple[list[Row], str]:
    files = [OPENFACE / "samples" / f"sample{k}.jpg" for k in PHOTOGRAPHS]
    options = ("--out", str(out), "--parts", "--validator", "--no-overlay")
    command("fit", *map(str, files), *options, *DETECTORS)
    stages = np.load(RECORDED / "stages_images.npz")
    n, rows, lines = len(static.intensities), [], []
    for i, file in enumerate(files):
        found = read(out / f"{file.stem}.csv", static.columns)
        expected = read(RECORDED / f"FaceLandmarkImg_{file.stem}.csv", static.columns)
        apart = np.abs(found.units - expected.units)[0]
        theirs = stages["landmarks"][i].reshape(2, 68).T
        ours = found.landmarks[0].astype(np.float32)
        far = np.linalg.norm(ours - theirs, axis=1)
        rows += [
            Row("landmarks apart, mean", file.stem, 68, float(far.mean()), unit="px"),
            Row("landmarks apart, most", file.stem, 68, float(far.max()), unit="px"),
            Row("intensity, largest difference", file.stem, n, float(apart[:n].max()), at_most=0.1),
            Row("classes that differ", file.stem, len(apart) - n, int((apart[n:] > 0).sum()),
                at_most=0),
        ]  # fmt: skip
        lines.append([file.stem, *traced(static, cv2.imread(str(file)), ours, theirs)])
    header = ["", "AU", "differs by", "landmark", "replaced moves it", "was off, px"]
    return rows, table(header, lines)


def main() -> None:
    """Measure, and write the results."""
    command_line(str(__doc__)).parse_args()
    jclnf.enable_compilation_cache()
    dynamic = load_action_units(PREDICTORS)
    n, rows, series, worst_classes, changed = len(dynamic.intensities), [], {}, [], []
    shifts = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for clip in CLIPS:
            file = str(OPENFACE / "samples" / f"{clip}.wmv")
            options = ("--out", str(out), "--one", "--no-plot")
            command("video", file, *options, *DETECTORS)
            found = read(out / f"{clip}.csv", dynamic.columns)
            expected = read(RECORDED / f"FeatureExtraction_dyn_{clip}.csv", dynamic.columns).units
            images, theirs = list(colour_frames(clip)), recorded_landmarks(clip)
            far = np.linalg.norm(found.landmarks - theirs, axis=2)
            rows += [
                Row("landmarks apart, mean", clip, far.size, float(far.mean()), unit="px"),
                Row("landmarks apart, most", clip, far.size, float(far.max()), unit="px"),
                *of_clip(dynamic, clip, found.units, expected),
            ]
            rng = np.random.default_rng(0)
            noise = rng.normal(0, NOISE, theirs.shape).astype(np.float32)
            noisy = judged(dynamic, images, theirs + noise).final
            label = f"recorded landmarks off by {NOISE} px: "
            rows += of_clip(dynamic, clip, noisy, expected, label)
            equal = {
                name: [100 * (one[:, j] == expected[:, j]).mean() for one in (found.units, noisy)]
                for j, name in enumerate(dynamic.columns)
                if j >= n
            }
            worst_classes += [
                [clip, name, f"{a:.1f} %", f"{b:.1f} %"] for name, (a, b) in equal.items() if a < 99
            ]
            both = found.landmarks.astype(np.float32), theirs
            of_both = [judged(dynamic, images, points) for points in both]
            changed += [
                line_of(clip, change)
                for change in changes(dynamic, images, both, (of_both[0], of_both[1]))
            ]
            series[clip] = found.units, expected
            shifts[clip] = np.subtract(*(zeros(dynamic, one) for one in of_both))
        static = load_action_units(PREDICTORS, static=True)
        of_photographs, traces = photographs(static, out / "fits")
    lines = []
    for j, name in enumerate(dynamic.columns[:n]):
        cells = []
        for clip in CLIPS:
            mine, expected = series[clip]
            moves = expected[:, j].std() >= MOVES
            off = np.abs(mine - expected)[:, j]
            cells += [f"{np.median(off):.3f}", f"{shifts[clip][j]:+.3f}", f"{off.max():.3f}"]
            cells.append(f"{correlation(mine[:, j], expected[:, j]):.3f}" if moves else "")
        lines.append([name, *cells])
    per_clip = ("median difference", "shift of 0", "largest", "correlation")
    header = ["intensity", *(f"{clip}: {what}" for clip in CLIPS for what in per_clip)]
    body = "\n\n".join(
        [
            pivot(rows),
            "Correlations are of the AUs that move. What counts as 0 comes from the medians "
            "and is the output of a single frame, so it moves all frames' intensities alike.",
            table(header, lines),
            "Classes that are equal in less than 99 % of frames, and the same with noise of "
            f"{NOISE} px on recorded landmarks:",
            table(["clip", "class", "command", "noise"], worst_classes),
            "Each class that differs: the frame by itself whose class turned with the largest "
            "difference, the output that decides there by its sign, what of the difference comes "
            "from the medians, and the landmark whose replacement by the recorded one removes most "
            "of the rest:",
            table(CHANGED, changed),
            pivot(of_photographs),
            "Largest differences, and the landmark whose replacement by the recorded one removes "
            "most of it:",
            traces,
        ]
    )
    write_results(
        HERE, "Action units: whole commands", body, {"rows": rows, "photographs": of_photographs}
    )
    draw(dynamic, series)


def draw(model: ActionUnits, series: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Intensities over time, jclnf's on OpenFace's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained")
    grid = figure.subplots(len(PLOTTED), len(series), sharex="col", sharey=True)
    for column, (clip, (found, expected)) in enumerate(series.items()):
        for axes, name in zip(grid[:, column], PLOTTED, strict=True):
            j = model.columns.index(name)
            axes.plot(expected[:, j], color="0.7", linewidth=3, label="OpenFace")
            axes.plot(found[:, j], color="C3", linewidth=0.8, label="jclnf")
            axes.set_ylabel(name)
            axes.grid(alpha=0.3)
        grid[0, column].set_title(clip)
        grid[-1, column].set_xlabel("frame")
    grid[0, 0].legend(fontsize="small")
    figure.savefig(HERE / "intensities.png")


if __name__ == "__main__":
    main()
