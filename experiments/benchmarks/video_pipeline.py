"""How many frames a second `jclnf video` does from file to table, and whether its memory grows.

A clip that begins again whenever it ends: decoded in a thread of its own, its face followed, head
pose and gaze computed, rows written, checkpoints included. The same work as the command's, by the
function that it calls for each video; what is compiled at the first frames is not counted.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import numpy as np  # noqa: E402
from common import OPENFACE, Row, model_file, pivot, write_results  # noqa: E402

import jclnf  # noqa: E402
from jclnf.video.job import do_video, load  # noqa: E402
from jclnf.video.settings import Settings  # noqa: E402
from jclnf.video.source import Frame, Source, VideoFile  # noqa: E402

CLIP = OPENFACE / "samples" / "default.wmv"
ASKED = 100.0
"""Frames per second asked of OpenFace's model with all of its parts, on two cores."""
GROWTH = 50.0
"""Megabytes that an hour of video may add after its first minute."""
SETTINGS = {
    "OpenFace's general model": Settings(model=str(model_file("general")), one=True),
    "bundled model": Settings(one=True),
}


class Looped:
    """A video file over and over, until there are `count` frames. See `Source`."""

    def __init__(self, path: Path, count: int) -> None:
        self._file = VideoFile(path)
        self.name, self.size, self.rate = self._file.name, self._file.size, self._file.rate
        self.count: int | None = count
        self.problems: list[str] = []

    def frames(self, start: int = 1) -> Iterator[Frame]:
        every = itertools.chain.from_iterable(self._file.frames() for _ in itertools.count())
        for number, frame in enumerate(itertools.islice(every, self.count), 1):
            if number >= start:
                yield replace(frame, number=number, time=(number - 1) / self.rate)


def megabytes() -> float:
    """Memory of this process that is resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(settings: Settings, model: Any, source: Source, told: Any = None) -> float:
    """Make the results of a video in a folder that goes; seconds."""
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        done = do_video(settings, model, "clip", Path(name), "clip", source=source, told=told)
        if done.problems:
            raise RuntimeError(done.problems[0])
        return time.perf_counter() - start


def speed(count: int, repeats: int) -> list[Row]:
    """Frames per second of each model, in alternation."""
    models = {name: load(settings) for name, settings in SETTINGS.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            frames = count if repeat else 40
            cpu = time.process_time()
            settings = replace(SETTINGS[name], plot=False)
            seconds = run(settings, model, Looped(CLIP, frames))
            if repeat:
                taken[name].append((seconds / frames, (time.process_time() - cpu) / frames))
    rows = []
    for name, pairs in taken.items():
        wall, cpu_time = np.array(pairs).T
        asked = ASKED if name.startswith("OpenFace") else None
        size = repeats * count
        rows += [
            Row("frames per second, median", name, size, float(1 / np.median(wall)), None, asked),
            Row("frames per second, best", name, size, float(1 / wall.min())),
            Row(
                "processor time of a frame", name, size, float(1e3 * np.median(cpu_time)), unit="ms"
            ),
        ]
    return rows


def memory(minutes: float) -> tuple[list[Row], list[tuple[int, float]]]:
    """What a long video adds to the memory after its first minute."""
    name = "bundled model"
    source = Looped(CLIP, 1)
    minute = round(60 * source.rate)
    source.count = round(minutes * minute)
    samples: list[tuple[int, float]] = []

    def told(frame: Frame, _: Any) -> bool:
        if frame.number % 100 == 0:
            samples.append((frame.number, megabytes()))
        return True

    run(SETTINGS[name], load(SETTINGS[name]), source, told)
    end = megabytes()
    frames, used = np.array(samples).T
    after = frames >= minute
    slope = np.polyfit(frames[after] / minute, used[after], 1)[0]
    first = used[after][0]
    count = source.count
    return [
        Row("minutes of video", name, count, minutes),
        Row("memory after a minute", name, count, float(first), unit="MB"),
        Row("most while following, beyond that", name, count, float(used[after].max() - first),
            unit="MB"),
        Row("at the end, the plot included, beyond that", name, count, float(end - first),
            unit="MB"),
        Row("growth in an hour, from the slope", name, count, float(60 * slope), GROWTH,
            unit="MB"),
    ], samples  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0, help="of video, for the memory")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    jclnf.enable_compilation_cache()
    # First, so that nothing else has set the memory's level.
    grown, samples = memory(args.minutes)
    rows = speed(args.frames, args.repeats)
    source = VideoFile(CLIP)
    body = (
        f"{CLIP.name}, {source.size[0]} x {source.size[1]} pixels, one face, looped. Load before "
        f"it began: {load_before:.1f}.\n\n## Speed\n\n{args.frames} frames, {args.repeats} times, "
        f"models in turn.\n\n{pivot(rows)}\n\n## Memory\n\n{pivot(grown)}"
    )
    folder = HERE / "video_pipeline"
    folder.mkdir(exist_ok=True)
    numbers = {"load": load_before, "speed": rows, "memory": grown, "samples": samples}
    write_results(folder, "From a video to its table", body, numbers)


if __name__ == "__main__":
    main()
