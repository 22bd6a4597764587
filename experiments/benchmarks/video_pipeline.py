"""How many frames a second does `jclnf video` do, and does its memory stay flat?

    python -m experiments.benchmarks.video_pipeline speed [--frames 800]
    python -m experiments.benchmarks.video_pipeline memory [--minutes 60] [--aus] [--within 60]

The whole pipeline (decoding, tracking, eye models, confidence, head pose, gaze, table), one face,
640 x 480 pixels: OpenFace's clip `default.wmv` over and over. Speed is measured after everything is
compiled, both models in turns; on an idle machine. Needs the development data.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import jclnf
from experiments.common import OPENFACE, Row, model_file, pivot, write_results
from experiments.timing import cpp_fit
from jclnf.fitting import Model
from jclnf.video import Settings, load
from jclnf.video._run import Counts, OnFrame, Run
from jclnf.video._source import Frame, Selection
from jclnf.video._video_file import VideoFile

HERE = Path(__file__).resolve().parent

CLIP = OPENFACE / "samples" / "default.wmv"
ROUNDS = 9


class Looped(VideoFile):
    """A video that begins again where it ends, up to a number of frames."""

    def __init__(self, path: Path, count: int) -> None:
        super().__init__(path)
        self._wanted = count

    def frames(self, selection: Selection = Selection()) -> Iterator[Frame]:  # noqa: B008
        number, begun = 0, 0.0
        while True:
            last = begun
            for frame in super().frames():
                number += 1
                last = begun + frame.time
                if number > self._wanted:
                    return
                if number >= selection.start:
                    yield Frame(number, last, frame.image)
            begun = last + 1 / self.rate


def settings(kind: str, units: bool = False) -> Settings:
    """One face; OpenFace's model with everything that it comes with, or the bundled one."""
    model = str(model_file("general")) if kind == "OpenFace's general model" else None
    folder = str(OPENFACE / "AU_predictors") if units else None
    return Settings(model=model, one=True, plot=False, aus=units, au_models=folder)


def ready(kind: str, units: bool = False) -> tuple[Settings, Model]:
    """Settings and model, after a run with them."""
    chosen = settings(kind, units)
    model = load(chosen)
    with tempfile.TemporaryDirectory() as folder:
        # The whole clip: each size of crop that its face comes to is compiled when it first comes.
        Run(chosen, model, VideoFile(CLIP), Path(folder), "warm").perform(resume=False)
    return chosen, model


def performed(
    chosen: Settings, model: Model, count: int, on_frame: OnFrame | None = None
) -> tuple[Counts, float]:
    """A run, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(chosen, model, Looped(CLIP, count), Path(folder), "run")
        begun = time.perf_counter()
        counts = run.perform(resume=False, on_frame=on_frame)
        return counts, time.perf_counter() - begun


def speed(count: int) -> None:
    load_before = os.getloadavg()[0]
    kinds = {"OpenFace's general model": 150.0, "bundled model": 200.0}
    used = {kind: ready(kind) for kind in kinds}
    seen: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            cpp = 1e3 * cpp_fit()
            counts, seconds = performed(*used[kind], count)
            assert counts.frames == count
            success = 100 * counts.rows_with_success / count
            seen[kind].append((count / seconds, success, cpp))
            print(kind, *seen[kind][-1], flush=True)
    rows = []
    for kind, asked in kinds.items():
        rates, success, cpp = np.transpose(seen[kind])
        rows += [
            Row("frames a second", kind, ROUNDS, np.median(rates), at_least=asked),
            Row("the slowest run", kind, ROUNDS, rates.min()),
            Row("the fastest", kind, ROUNDS, rates.max()),
            Row("frames with success", kind, ROUNDS, success.min(), unit="%"),
            Row("a C++ fit of an image, estimated before each", kind, ROUNDS, np.median(cpp),
                unit="ms"),
        ]  # fmt: skip
    body = (
        f"{CLIP.name} over and over, {count} frames a run, both models in turns; medians of "
        f"{ROUNDS} runs. Load before it began: {load_before:.1f}.\n\n{pivot(rows)}"
    )
    folder = HERE / "video_pipeline"
    write_results(folder, "The whole of jclnf video", body, {"load": load_before, "rows": rows})


def resident(name: str) -> float:
    """Megabytes that this process has, `VmRSS`, or has had at most, `VmHWM`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def memory(minutes: float, units: bool, within: float | None) -> None:
    count, kind = round(60 * minutes * 30), "OpenFace's general model"
    until = math.inf if within is None else time.monotonic() + 60 * within
    seen: list[tuple[int, float]] = []

    def on_frame(frame: Frame, _: object) -> bool:
        if frame.number % 300 == 0:
            seen.append((frame.number, resident("VmRSS")))
        if frame.number == 1800:
            Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
        return time.monotonic() < until

    counts, seconds = performed(*ready(kind, units), count, on_frame)
    first = next(size for number, size in seen if number >= 1800)
    growth = max(size for number, size in seen if number >= 1800) - first
    rows = [
        Row("growth after the first minute", kind, len(seen), growth, 50.0, unit="MB"),
        Row("the same, the most at any time, the end included", kind, 1,
            resident("VmHWM") - first, 50.0, unit="MB"),
        Row("memory after the first minute", kind, 1, first, unit="MB"),
        Row("video", kind, 1, counts.frames / 1800, unit="minutes"),
        Row("frames a second", kind, 1, counts.frames / seconds),
    ]  # fmt: skip
    folder = HERE / ("video_memory_units" if units else "video_memory")
    write_results(
        folder,
        "Memory of a long run" + (" with action units" if units else ""),
        f"{CLIP.name} over and over, {counts.frames} frames (at 30 a second).\n\n{pivot(rows)}",
        {"rows": rows, "megabytes": seen},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--within", type=float, help="end after so many minutes of the clock")
    parser.add_argument("--aus", action="store_true", help="action units as well (memory)")
    args = parser.parse_args()
    jclnf.enable_compilation_cache()
    if args.what == "speed":
        speed(args.frames)
    else:
        memory(args.minutes, args.aus, args.within)


if __name__ == "__main__":
    main()
