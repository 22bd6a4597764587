"""Kill runs over a video at random moments, go on with them, and compare the results, byte by byte.

A clip is followed with everything that `jclnf video` writes. The run of a process of its own is
killed by the system (SIGKILL) at a random moment; a copy of what it left is completed by
`process_videos(..., resume=True)`, which the command calls, and compared with the
files of a run that nothing disturbed. What was left itself goes on in the next process, which is
killed as well: so there are runs that were stopped twice.

With `--aus` there is a table with action units, and nothing else: by random predictors, of the
landmarks of a random model in OpenFace's files, since the bundled one's are refused.
"""

import argparse
import dataclasses
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jclnf
from experiments.killing import RUNS, killing_command_line, write_killed
from jclnf.video import (
    JobResult,
    Settings,
    process_videos,
)
from jclnf.video._settings import CHUNK
from tests.support.action_unit_files import write_predictors
from tests.support.openface_files import random_model, write_model
from tests.support.videos import frames, write_video

HERE = Path(__file__).resolve().parent

COUNT = 128
STEM = "face"
MAIN = "main_clnf_general.txt"
EVERY = 0.05
"""Seconds between checkpoints: several in a run as short as these."""
KILLS, KILLS_WITH_UNITS = 200, 50
STOPS = 2
"""Times that a run is killed before another one begins."""
SETTINGS = Settings(
    pts=True,
    aligned=64,
    overlay=True,
    smooth="one-euro",
    parquet=importlib.util.find_spec("pyarrow") is not None,
)


def settings_of(clip: Path) -> Settings:
    """With action units if there are predictors beside the clip."""
    predictors = clip.parent / "AU_predictors"
    if not predictors.is_dir():
        return SETTINGS
    return Settings(
        model=str(clip.parent / "model" / MAIN),
        validator=False,
        parts=False,
        aus=True,
        au_models=str(predictors),
        boxes=str(clip.parent / "boxes.csv"),
        one=True,
        iterations=1,
        plot=False,
    )


def write_units(folder: Path) -> None:
    """Write a model and predictors; and a box, as that model does not follow anybody for long."""
    model = random_model(1, landmarks=68, modes=3, scalings=(0.25,), views=1)
    written = write_model(folder / "model", model)
    assert written == folder / "model" / "main_clnf_general.txt", written
    write_predictors(folder / "AU_predictors")
    rows = [f"{number},72,46,95,100\n" for number in (4, 30, 60, 90)]
    (folder / "boxes.csv").write_text("frame,x,y,w,h\n" + "".join(rows))


def followed(settings: Settings, clip: Path, out: Path, **options: Any) -> JobResult:
    (done,) = process_videos(settings, [str(clip)], out, **options)
    return done


def child(clip: Path) -> None:
    """Get everything ready, wait for the name of a folder, and do the run there."""
    jclnf.enable_compilation_cache()
    with tempfile.TemporaryDirectory() as name:
        short = dataclasses.replace(settings_of(clip), end=0.05, plot=False)
        followed(short, clip, Path(name))
    print("ready", flush=True)
    out = Path(sys.stdin.readline().strip())
    begun = time.monotonic()
    done = followed(settings_of(clip), clip, out, resume=True, every=EVERY)
    print(json.dumps([time.monotonic() - begun, done.problems]), flush=True)


def start(clip: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.resume", "--child", str(clip)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def begin(process: subprocess.Popen[str], out: Path) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError("the process did not get ready")
    process.stdin.write(f"{out}\n")
    process.stdin.flush()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run but its metadata, which hold the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".json"
    }


def stage(folder: Path) -> str:
    """How far a run had come, by what it left."""
    if (folder / f"{STEM}.json").exists():
        return "complete but for tidying up"
    table = folder / f"{STEM}.csv"
    if not table.exists():
        return "before the table"
    rows = table.read_bytes().count(b"\n") - 1
    if rows == COUNT:
        return "what is made of the table"
    known = (folder / f"{STEM}.checkpoint").exists()
    return "following, with a checkpoint" if known else "following, before a checkpoint"


def compared(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Differences from the files that there should be."""
    wrong = [f"missing {name}" for name in expected if name not in found]
    wrong += [f"left behind {name}" for name in found if name not in expected]
    return wrong + [f"other bytes {n}" for n in expected if n in found and found[n] != expected[n]]


class Trials:
    """Kills, and what became of them; several threads take turns.

    Only one run at a time is completed in this process.
    """

    def __init__(self, clip: Path, folder: Path, kills: int, minutes: float, seed: int) -> None:
        self.clip, self.folder, self.wanted = clip, folder, kills
        self.until = time.monotonic() + 60 * minutes
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.stages: Counter[str] = Counter()
        self.again = self.undisturbed = self.kills = 0
        self.wrong: list[str] = []
        first = folder / "whole"
        first.mkdir()
        done = followed(settings_of(clip), clip, first)
        assert not done.problems, done.problems
        self.expected = contents(first)
        process = start(clip)
        (folder / "timed").mkdir()
        begin(process, folder / "timed")
        assert process.stdout is not None
        self.seconds, problems = json.loads(process.stdout.readline())
        process.wait()
        assert not problems, problems
        self.check(folder / "timed", "a run that was not killed")
        print(f"a run takes {self.seconds:.2f} s, and makes {len(self.expected)} files", flush=True)

    def check(self, folder: Path, label: str) -> None:
        wrong = compared(contents(folder), self.expected)
        if wrong:
            self.wrong.append(f"{label}: {wrong[0]} and {len(wrong) - 1} more")
            print(self.wrong[-1], flush=True)

    def open(self) -> bool:
        return self.kills < self.wanted and time.monotonic() < self.until

    def work(self, number: int) -> None:
        """Kill and complete runs until there are enough."""
        run = 0
        following = start(self.clip)
        while self.open():
            run += 1
            out = self.folder / f"{number}_{run}"
            out.mkdir()
            left = self.seconds
            for stop in range(STOPS):
                process, following = following, start(self.clip)
                delay = self.random.uniform(0, left)
                begin(process, out)
                time.sleep(delay)
                ended = process.poll() is not None
                process.send_signal(signal.SIGKILL)
                process.communicate()
                if ended or process.returncode != -signal.SIGKILL:
                    self.undisturbed += 1
                    self.check(out, "a run that ended before it was to be killed")
                    break
                self.killed(out, stop, delay)
                left -= delay
                if not self.open():
                    break
            shutil.rmtree(out)
        following.kill()
        following.communicate()

    def killed(self, out: Path, stop: int, delay: float) -> None:
        with self.lock:
            if self.kills == self.wanted:
                return
            self.kills += 1
            self.again += stop > 0
            where = stage(out)
            self.stages[where] += 1
            copy = out.with_name(f"{out.name}_copy")
            shutil.copytree(out, copy)
            done = followed(settings_of(self.clip), self.clip, copy, resume=True)
            label = f"kill {self.kills}, after {delay:.3f} s, {where}"
            if done.problems:
                self.wrong.append(f"{label}: {done.problems[0]}")
                print(self.wrong[-1], flush=True)
            else:
                self.check(copy, label)
            shutil.rmtree(copy)
            print(f"{label}: {len(self.wrong)} wrong so far", flush=True)


def main() -> None:
    parser = killing_command_line(__doc__, kills=KILLS, seed=11)
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--aus", action="store_true", help="with action units")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child)
        return
    jclnf.enable_compilation_cache()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write_video(folder / f"{STEM}.mp4", frames(COUNT))
        if args.aus:
            write_units(folder)
        trials = Trials(clip, folder, args.kills, args.minutes, args.seed)
        threads = [
            threading.Thread(target=trials.work, args=(number,)) for number in range(args.processes)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = Counter(
        {
            RUNS: trials.kills,
            "of these, for the second time": trials.again,
            **{f"killed: {where}": count for where, count in sorted(trials.stages.items())},
        }
    )
    kinds: Any = Counter(Path(name).suffix for name in trials.expected)
    files = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
    text = (
        f"A clip of {COUNT} frames, in chunks of {CHUNK}; a run took {trials.seconds:.1f} s and "
        f"wrote {len(trials.expected)} files ({files}), all of which are compared."
    )
    wrong = {"results that differ": trials.wrong}
    where, title, asked = HERE, "Killed runs", KILLS
    if args.aus:
        where, title, asked = HERE / "units", "Killed runs with action units", KILLS_WITH_UNITS
    write_killed(where, title, text, counts, wrong, asked=asked, add=args.add)


if __name__ == "__main__":
    main()
