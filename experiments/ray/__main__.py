"""Videos and photographs on a local Ray cluster: one worker against two, workers and the command
killed, and the memory of a worker over many photographs.

Each run is the command itself, in processes of its own. All files but metadata, which hold the
time, are compared byte by byte. Rates are taken between the first result and the last, when all
workers are at work; the machine's load is told beside them.
"""

import dataclasses
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from experiments.common import Row, command_line, pivot, write_results
from tests.support.videos import frames, hopper, write_video

HERE = Path(__file__).resolve().parent
_MARK = "JCLNF_EXPERIMENT"
"""In the environment of all processes of a run, and of nothing else."""
_WORKER = b"ray::_Process"


class Run:
    """A command on a cluster of its own."""

    def __init__(self, words: list[str], out: Path, workers: int) -> None:
        self.out, self.token, self.begun = out, secrets.token_hex(8), time.time()
        command = [sys.executable, "-m", "jclnf", *words, "--out", str(out), "--quiet", "--resume"]
        command += ["--ray", "--workers", str(workers)]
        environment = {**os.environ, _MARK: self.token}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def results(self) -> list[Path]:
        """What is finished, in the order of time."""
        videos = [p for p in self.out.glob("*.json") if not p.name.startswith(".")]
        found = [*videos, *self.out.glob("*.parquet/part-*"), *self.out.glob(".*.parquet/part-*")]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def processes(self) -> Iterator[tuple[int, bytes]]:
        """Number and command of each process of it."""
        mark = f"{_MARK}={self.token}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_bytes()
            except OSError:
                continue

    def workers(self) -> list[int]:
        return [number for number, command in self.processes() if command.startswith(_WORKER)]

    def wait_for(self, ready: Callable[[], bool]) -> None:
        while not ready() and self.process.poll() is None:
            time.sleep(0.05)

    def kill_worker(self) -> None:
        os.kill(random.choice(self.workers()), signal.SIGKILL)

    def kill(self) -> None:
        """The command itself; its cluster has to end by itself."""
        self.process.kill()
        self.process.communicate()
        deadline = time.monotonic() + 60
        while any(self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)

    def end(self) -> None:
        _, err = self.process.communicate()
        if self.process.returncode not in (0, 1):
            raise RuntimeError(err)

    def rate(self) -> float:
        """Results a second, from the first to the last."""
        times = [path.stat().st_mtime for path in self.results()]
        return (len(times) - 1) / (times[-1] - times[0])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.suffix != ".json" and not path.name.startswith(".")
    }


def differing(out: Path, expected: dict[str, bytes]) -> int:
    found = contents(out)
    return sum(found.get(name) != expected.get(name) for name in found.keys() | expected.keys())


def clips(folder: Path, count: int, length: int) -> Path:
    folder.mkdir()
    for n in range(count):
        write_video(folder / f"clip{n:03}.avi", frames(length + n % 5))
    return folder


def photographs(folder: Path, count: int) -> Path:
    """Two public-domain faces, moved, turned, scaled and lit in many ways."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    faces = hopper(), skimage.data.astronaut()[0:256, 96:352, ::-1]
    for n in range(count):
        image = faces[n % 2]
        side = image.shape[0]
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-12, 12), 1)
        turn *= rng.uniform(0.7, 1.4)
        turn[:, 2] += rng.uniform(0, 60, 2)
        shown = cv2.warpAffine(image, turn, (420, 420), borderValue=(90, 90, 90))
        lit = np.clip(shown * rng.uniform(0.5, 1.2) + rng.normal(0, 3, shown.shape), 0, 255)
        cv2.imwrite(str(folder / f"{n:06}.jpg"), lit.astype(np.uint8))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


def compared(
    rows: list[Row], what: str, words: list[str], folder: Path, count: int
) -> dict[str, bytes]:
    """One worker against two."""
    rates = {}
    expected: dict[str, bytes] = {}
    for workers in (1, 2):
        out = folder / f"{words[0]}_{workers}"
        run = Run(words, out, workers)
        run.end()
        rates[workers] = run.rate()
        seconds = time.time() - run.begun
        where, load = f"{what}, {workers} worker{'s' * (workers > 1)}", os.getloadavg()[0]
        rows.append(Row("whole command", where, count, seconds, unit="s"))
        rows.append(Row("load of the machine, of 2", where, count, load))
        print(where, f"{seconds:.0f} s, load {load:.1f}", flush=True)
        if workers == 1:
            expected = contents(out)
        else:
            wrong = differing(out, expected)
            rows.append(Row("files that differ from one worker's", what, count, wrong, at_most=0))
    ratio = rates[2] / rates[1]
    rows.append(Row("two workers by one, while all work", what, count, ratio, at_least=1.7))
    return expected


def killed(
    rows: list[Row], what: str, words: list[str], out: Path, expected: dict[str, bytes]
) -> None:
    """A worker killed twice, and the command once."""
    run = Run(words, out, 2)
    total = len([name for name in expected if name.endswith((".csv", ".parquet"))]) - (
        words[0] == "video"
    )
    run.wait_for(lambda: len(run.results()) >= 1)
    for part in (0.1, 0.3):
        run.wait_for(lambda part=part: len(run.results()) >= part * total)
        before = set(run.workers())
        run.kill_worker()
        run.wait_for(lambda before=before: len(set(run.workers()) - before) > 0)
    run.wait_for(lambda: len(run.results()) >= 0.5 * total)
    run.kill()
    left, survivors = len(run.results()), len(list(run.processes()))
    print(f"{what}: killed with {left} of {total} done", flush=True)
    kept = {path: path.stat().st_mtime_ns for path in run.results()}
    Run(words, out, 2).end()
    again = sum(path.stat().st_mtime_ns != time_ for path, time_ in kept.items())
    wrong = differing(out, expected)
    rows.append(Row("workers killed, commands killed", what, total, 3))
    rows.append(Row("processes left a minute after the command", what, total, survivors, at_most=0))
    rows.append(Row("done when the command was killed", what, total, left))
    rows.append(Row("of these, done again", what, total, again, at_most=0))
    rows.append(Row("files that differ in the end", what, total, wrong, at_most=0))


def memory(rows: list[Row], words: list[str], out: Path, count: int, minutes: float) -> None:
    """How much a worker has, as it goes."""
    run = Run(words, out, 1)
    samples: list[tuple[int, float]] = []

    def sample() -> None:
        while run.process.poll() is None:
            for number in run.workers():
                try:
                    text = Path(f"/proc/{number}/status").read_text()
                except OSError:
                    continue
                size = int(text.partition("VmRSS:")[2].split()[0]) / 1024
                samples.append((256 * len(run.results()), size))
            time.sleep(2)

    watch = threading.Thread(target=sample)
    watch.start()
    deadline = time.monotonic() + 60 * minutes
    run.wait_for(lambda: time.monotonic() > deadline)
    if run.process.poll() is None:
        run.kill()
    watch.join()
    done = max(at for at, _ in samples)
    half = [size for at, size in samples if done / 4 <= at < done / 2]
    last = [size for at, size in samples if at >= 3 * done / 4]
    where = f"photographs, {min(done, count)} by one worker"
    rows.append(Row("memory, second quarter", where, done, float(np.median(half)), unit="MiB"))
    rows.append(Row("memory, last quarter", where, done, float(np.median(last)), unit="MiB"))
    growth = float(np.median(last) - np.median(half))
    rows.append(Row("growth", where, done, growth, at_most=20, unit="MiB"))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frames", type=int, default=150, help="of each clip")
    parser.add_argument("--photographs", type=int, default=5000)
    parser.add_argument("--many", type=int, default=20000, help="photographs, for the memory")
    parser.add_argument("--minutes", type=float, default=60, help="of these, at most")
    parser.add_argument("--without", nargs="*", default=(), help="videos, photographs or memory")
    parser.add_argument("--add", action="store_true", help="to the results that there are")
    args = parser.parse_args()
    random.seed(7)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "videos" not in args.without:
            words = ["video", str(clips(folder / "clips", args.clips, args.frames)), "--no-plot"]
            expected = compared(rows, "videos", words, folder, args.clips)
            killed(rows, "videos", words, folder / "killed", expected)
        if "photographs" not in args.without:
            words = ["fit", str(photographs(folder / "photographs", args.photographs))]
            expected = compared(rows, "photographs", words, folder, args.photographs)
            killed(rows, "photographs", words, folder / "fit_killed", expected)
            shutil.rmtree(folder / "photographs")
        if "memory" not in args.without:
            words = ["fit", str(photographs(folder / "many", args.many))]
            memory(rows, words, folder / "fit_many", args.many, args.minutes)
    if args.add:
        before: list[Row] = []
        names = {field.name for field in dataclasses.fields(Row)}
        for row in json.loads((HERE / "results.json").read_text())["rows"]:
            before.append(Row(**{name: value for name, value in row.items() if name in names}))
        rows = before + rows
    write_results(HERE, "A local Ray cluster", pivot(rows), {"rows": rows})


if __name__ == "__main__":
    main()
