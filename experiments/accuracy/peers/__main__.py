"""The bundled model beside OpenFace's CLNF, dlib and MediaPipe: accuracy and time, same boxes.

    python -m experiments.accuracy.peers

On the 224 test photographs of the development data, from their boxes. dlib and MediaPipe are
installed into an environment of their own, in the user's cache folder (400 MB are downloaded the
first time).
"""

import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before NumPy is imported: its threads would wait for each other on the one core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import platformdirs

from experiments.common import DATA, command_line, table, write_results
from experiments.timing import cpp_fit
from experiments.training.trunk.evaluate import measures
from jclnf.annotations import BoxTable, read_annotations
from jclnf.evaluation import draw_curves
from jclnf.evaluation._metrics import INNER, nme, outer_eye_distance, remove_offsets
from jclnf.geometry import tight_box

HERE = Path(__file__).resolve().parent
PHOTOGRAPHS = DATA / "photographs"

LEARNED = 300
"""Training photographs that boxes and points for dlib and MediaPipe are learned from."""
TIMED, ALTERNATIONS = 24, 9


def environment() -> Path:
    """The Python of an environment with dlib and MediaPipe, which is made if it is not there."""
    wanted = (HERE / "requirements.txt").read_bytes()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"{version}-{hashlib.sha256(wanted).hexdigest()[:12]}"
    folder = platformdirs.user_cache_path("jclnf", appauthor=False) / "peers" / name
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"]
        subprocess.run(install, check=True)
        whole.touch()
    return python


class Worker:
    """A process that finds landmarks by several methods, see `peer.serve`."""

    def __init__(self, *command: Any) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.methods: list[str] = self._answer()

    def __call__(self, method: str, faces: list[int], **options: Any) -> dict[str, Any]:
        asked = json.dumps({"method": method, "faces": faces, **options})
        print(asked, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended")
        return json.loads(line)


def pinned_to_one_core() -> None:
    """Have this process and those that it starts share one core, so that all have one thread."""
    if hasattr(os, "sched_setaffinity"):  # not on all systems
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measured(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Errors of landmarks `(f, 68, 2)`, % of the outer eye distance."""
    eyes = outer_eye_distance(truth)
    errors = nme(found, truth, eyes)
    return measures(found, truth) | {
        "p90": float(np.percentile(errors, 90)),
        "over10": float(100 * np.mean(errors > 10)),
        "scatter_inner": float(nme(remove_offsets(found, truth), truth, eyes, INNER).mean()),
    }


COLUMNS = {
    "NME68 mean / median / 90 %": ("mean", "median", "p90"),
    "over 8 / 10 %": ("over8", "over10"),
    "inner 51": ("inner",),
    "own offset removed, 68 / 51": ("scatter", "scatter_inner"),
    "mouth opening: error, bias, r": ("mouth", "mouth_bias", "mouth_r"),
    "lid opening: error, bias, r": ("lid", "lid_bias", "lid_r"),
}

KNOWN = {
    "OpenFace CLNF, 11 starts": (4.22, 3.82, 5.89, 3.6, 1.3, 3.39, 3.84, 2.98)
    + (2.71, -0.42, 0.75, 1.36, -0.53, 0.65),
    "dlib": (3.48, 2.54, 4.89, 4.5, 3.6, 3.07, 3.34, 2.89) + (1.67, 0.36, 0.94, 1.11, -0.14, 0.74),
    "MediaPipe Face Mesh": (5.65, 5.34, 7.48, 6.7, 1.8, 4.27, 3.97, 3.06)
    + (2.31, 0.26, 0.90, 1.26, 0.09, 0.65),
}
"""What others measured on the same faces, from the same boxes; in the order of `COLUMNS`."""


def timed(workers: Mapping[str, Worker], faces: int) -> tuple[dict[str, list[float]], list[float]]:
    """Median seconds of a face, by method and alternation, and of a C++ fit beside them."""
    some = np.linspace(0, faces - 1, TIMED).astype(int).tolist()
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    cpp = []
    for _ in range(ALTERNATIONS):
        cpp.append(cpp_fit(processor=True))
        for name, worker in workers.items():
            seconds[name].append(statistics.median(worker(name, some)["seconds"]))
    return seconds, cpp


def draw_costs(costs: Mapping[str, tuple[float, float, float]], cpp: float) -> bytes:
    """The mean error over the milliseconds of a face; a line up to the 90th percentile.

    Args:
        costs: milliseconds, mean error, and its 90th percentile, by the method's name.
        cpp: milliseconds of a C++ fit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    small = {"fontsize": "small", "textcoords": "offset points"}
    for name, (ms, mean, p90) in costs.items():
        colour = next(colour for start, colour in COLOURS.items() if name.startswith(start))
        axes.plot([ms, ms], [mean, p90], color=colour, lw=1, alpha=0.5)
        axes.plot(ms, mean, "o", color=colour)
        # To the left where the next point is close on the right.
        close = any(ms < x < 1.6 * ms and abs(mean - y) < 0.7 for x, y, _ in costs.values())
        align, away = ("right", -6) if close else ("left", 6)
        label = name.replace(", ", ",\n")
        axes.annotate(label, (ms, mean), (away, 0), ha=align, va="center", **small)
    axes.axvline(cpp, color="0.6", ls="--", lw=1)
    axes.annotate("one C++ fit of OpenFace", (cpp, 0.2), (4, 0), color="0.4", **small)
    ends = [0.5 * min(c[0] for c in costs.values()), 2.5 * max(c[0] for c in costs.values())]
    axes.set(xscale="log", xlim=ends, ylim=(0, None))
    axes.set(xlabel="a face, ms of one core", ylabel="mean error, % of the outer eye distance")
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200) if ends[0] < t < ends[1]]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


COLOURS = {"bundled": "C0", "OpenFace": "C1", "dlib": "C2", "MediaPipe": "C3"}


def cells(numbers: Mapping[str, float]) -> list[str]:
    """The columns of `COLUMNS` as text."""
    return [" / ".join(f"{numbers[key]:.2f}" for key in keys) for keys in COLUMNS.values()]


def report(
    landmarks: Mapping[str, np.ndarray],
    truth: np.ndarray,
    seconds: Mapping[str, list[float]],
    cpp: list[float],
    learned: Mapping[str, Any],
    load: tuple[float, float, float],
) -> None:
    """Write the results and the plots."""
    found = {name: measured(points, truth) for name, points in landmarks.items()}
    ms = {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}
    by_cpp = {
        name: statistics.median(a / b for a, b in zip(taken, cpp, strict=True))
        for name, taken in seconds.items()
    }
    lines = [
        [name, *cells(numbers), f"{ms[name]:.1f}", f"{by_cpp[name]:.2f}"]
        for name, numbers in found.items()
    ]
    keys = [key for names in COLUMNS.values() for key in names]
    known = [[name, *cells(dict(zip(keys, values, strict=True)))] for name, values in KNOWN.items()]
    eyes = outer_eye_distance(truth)
    curves = {name: nme(points, truth, eyes) for name, points in landmarks.items()}
    label = "mean error of a face / outer eye distance"
    (HERE / "curves.png").write_bytes(draw_curves(curves, limit=12, label=label))
    one_cpp = 1e3 * statistics.median(cpp)
    costs = {name: (ms[name], f["mean"], f["p90"]) for name, f in found.items()}
    (HERE / "cost.png").write_bytes(draw_costs(costs, one_cpp))
    boxes = [
        [name, *(f"{value:.3f}" for value in answer["box"]), answer["found"]]
        for name, answer in learned.items()
    ]
    header = ["", *COLUMNS, "ms a face", "by a C++ fit"]
    loads = ", ".join(f"{value:.2f}" for value in load)
    body = f"""{len(truth)} photographs of people that no model of ours was trained on, from the
same inexact boxes. Errors in % of the outer eye distance. Times are of the processor, on one core,
images in memory: medians over {TIMED} faces and {ALTERNATIONS} alternations of all methods. A C++
fit of OpenFace from one start, estimated in the same alternations, took {one_cpp:.1f} ms.

{table(header, lines)}

![cumulative error curves](curves.png)

![error and time](cost.png)

## What others measured on the same faces

{table(["", *COLUMNS], known)}

## Boxes

Where a program's own detector looks, beside a box that is tight around the landmarks: medians over
the faces that it finds on {LEARNED} training photographs, in mean sides of the box. There
MediaPipe's points were chosen too: of its mesh the one that is nearest to each landmark on average.

{table(["", "to the right", "down", "side", "faces"], boxes)}

Load of the machine before the times were taken (1, 5, 15 minutes): {loads}."""
    numbers = {
        "measures": found,
        "ms": ms,
        "by C++": by_cpp,
        "C++ fit, ms": one_cpp,
        "learned": learned,
        "requirements": (HERE / "requirements.txt").read_text().split(),
    }
    write_results(HERE, "Accuracy and time beside other programs", body, numbers)


def main() -> None:
    command_line(__doc__).parse_args()
    python = environment()
    pinned_to_one_core()
    training = read_annotations(PHOTOGRAPHS / "landmarks.csv", split="train")
    training = training[:: len(training) // LEARNED][:LEARNED]
    tested = read_annotations(PHOTOGRAPHS / "landmarks.csv", split="test")
    boxes = BoxTable(PHOTOGRAPHS / "test_boxes.csv")
    starts = [boxes.boxes(face.image)[0] for face in tested]
    starts += [tight_box(face.landmarks) for face in training]
    truth = np.array([face.landmarks for face in tested])
    every = list(range(len(tested)))
    others = list(range(len(tested), len(starts)))
    learned = {}
    with tempfile.TemporaryDirectory() as temporary:
        cases = Path(temporary) / "faces.json"
        listed = {
            "images": [str(face.image) for face in (*tested, *training)],
            "boxes": [np.asarray(start, float).tolist() for start in starts],
            "landmarks": [None] * len(tested) + [face.landmarks.tolist() for face in training],
        }
        cases.write_text(json.dumps(listed))
        ours = Worker(sys.executable, "-m", "experiments.accuracy.peers.ours", cases)
        theirs = Worker(python, HERE / "peer.py", cases)
        for name in theirs.methods:
            learned[name] = theirs(name, others, learn=True)
        workers = {name: worker for worker in (ours, theirs) for name in worker.methods}
        landmarks = {
            name: np.array(worker(name, every)["landmarks"]) for name, worker in workers.items()
        }
        load = os.getloadavg()
        seconds, cpp = timed(workers, len(tested))
    report(landmarks, truth, seconds, cpp, learned, load)


if __name__ == "__main__":
    main()
