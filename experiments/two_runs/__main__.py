"""Two `jclnf fit` and two `jclnf video` write into one folder and are killed at a random moment.

The folder holds the complete results of earlier runs with other settings, those of a video that is
not done again, and files of the user's own, one of which has the name that a result would have.
All four processes begin at the same time and are killed by the system (SIGKILL) together. What is
there then is looked at, and each run is gone on with by `--resume`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import cv2

from experiments.killing import RUNS, killing_command_line, write_killed
from jclnf.cli import main as jclnf
from tests.support.videos import frames, write_video

HERE = Path(__file__).resolve().parent

IMAGES, FRAMES = 24, 64
BOX = (72, 46, 95, 100)
KILLS = 50
REFUSED = "processes that named the first and stopped"
FIT = ("fit", "--quiet", "--boxes")
VIDEO = ("video", "one.mp4", "two.mp4", "--quiet", "--pts", "--overlay", "--checkpoint-every", "0")
COMMANDS = {
    "fit a": (*FIT, "a.csv", "a"),
    "fit b": (*FIT, "b.csv", "b"),
    "video": VIDEO,
    "video again": VIDEO,
}
MINE = ("mine.csv", "two.png")
STEMS = ("one", "two_2")
"""What the videos' results are called: `two.png` is the user's own."""


def make_inputs(folder: Path) -> None:
    """Images, their boxes, and clips."""
    for name, shift in (("before", 0), ("a", 1), ("b", 2)):
        (folder / name).mkdir()
        lines = ["image,x,y,w,h"]
        for k, image in enumerate(frames(IMAGES)):
            cv2.imwrite(str(folder / name / f"{k:02}.png"), image)
            lines.append(f"{k:02}.png,{BOX[0] + shift},{','.join(map(str, BOX[1:]))}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    for name in ("one", "two", "other"):
        write_video(folder / f"{name}.mp4", frames(FRAMES))


def perform(*words: str) -> tuple[int, str]:
    """Run a command in this process: its exit code, and what it says of errors."""
    said = StringIO()
    with redirect_stderr(said), redirect_stdout(StringIO()):
        code = jclnf(words)
    return code, said.getvalue()


def child(name: str) -> None:
    """Get everything ready, wait for the name of a folder, and do a run there."""
    with tempfile.TemporaryDirectory() as out:
        more = ("--to", "0.1") if name.startswith("video") else ("--no-overlay",)
        perform(*COMMANDS[name], *more, "--out", out)
    print("ready", flush=True)
    out = sys.stdin.readline().strip()
    if not out:  # the experiment was ended
        return
    begun = time.monotonic()
    code, said = perform(*COMMANDS[name], "--out", out)
    print(json.dumps([code, said, time.monotonic() - begun]), flush=True)


def start(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.two_runs", "--child", name]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=environment,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """All files but metadata, which hold the time, the record, and what belongs to a lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".json", ".lock")
    }


def of_stem(files: dict[str, bytes], stem: str) -> dict[str, bytes]:
    """The results of a video."""
    endings = (".csv", ".png", "_overlay.mp4", "_pts/")
    return {n: d for n, d in files.items() if n.startswith(tuple(stem + e for e in endings))}


def of_fit(files: dict[str, bytes]) -> dict[str, bytes]:
    names = ("landmarks.csv", *(f"{k:02}_overlay.png" for k in range(IMAGES)))
    return {n: d for n, d in files.items() if n in names}


class Trials:
    """Kills, and what became of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        before = Path("out_before").absolute()
        before.mkdir()
        (before / "mine.csv").write_text("image,x,y,w,h\n")
        (before / "two.png").write_bytes(b"mine")
        shorter = ("video", "one.mp4", "two.mp4", *VIDEO[3:], "--from", "0.3")
        self.done(*FIT, "before.csv", "before", "--out", str(before))
        self.done(*shorter, "--out", str(before))
        self.done("video", "other.mp4", *VIDEO[3:], "--out", str(before))
        self.folder, self.before = before, contents(before)
        self.whole = {}
        for name in COMMANDS:
            out = Path(f"out_{name.replace(' ', '_')}").absolute()
            shutil.copytree(before, out)
            self.done(*COMMANDS[name], "--out", str(out))
            self.whole[name] = contents(out)
        self.bystanders = {
            name: data
            for name, data in self.before.items()
            if name in MINE or name.startswith("other")
        }

    def done(self, *words: str) -> None:
        code, said = perform(*words)
        if code != 0:
            raise RuntimeError(f"{words}: {code}: {said}")

    def begin(self, children: dict[str, subprocess.Popen[str]], out: Path) -> None:
        for process in children.values():
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a process did not get ready")
        for process in children.values():
            assert process.stdin is not None
            process.stdin.write(f"{out}\n")
            process.stdin.flush()

    def undisturbed(self) -> float:
        """Seconds that the longest of the four takes beside the others."""
        out = Path("out_timed").absolute()
        shutil.copytree(self.folder, out)
        children = {name: start(name) for name in COMMANDS}
        self.begin(children, out)
        results = {name: json.loads(p.communicate()[0]) for name, p in children.items()}
        self.refusals(results, "without a kill")
        self.look(out, "without a kill", complete=True)
        return max(seconds for _, _, seconds in results.values())

    def refusals(self, results: dict[str, list], label: str) -> None:
        for name, (code, said, _) in results.items():
            named = "is being written by process" in said
            self.counts[REFUSED] += named
            if code != 0 and not named:
                self.fault(f"{label}: {name}: exit {code}: {said}")

    def fault(self, text: str) -> None:
        self.wrong.append(text)
        print(text, flush=True)

    def look(self, out: Path, label: str, *, complete: bool = False) -> None:
        """Whether nothing of before is gone, and all tables are whole."""
        found = contents(out)
        for name, data in self.bystanders.items():
            if found.get(name) != data:
                self.fault(f"{label}: {name} has changed")
        tables = {"landmarks.csv": ("fit a", "fit b"), **{f"{s}.csv": ("video",) for s in STEMS}}
        for name, runs in tables.items():
            ours = [self.whole[run][name] for run in runs]
            if found.get(name) not in (ours if complete else [self.before[name], *ours]):
                self.fault(f"{label}: {name} is neither the earlier one nor a complete new one")

    def go_on(self, out: Path, label: str) -> None:
        """Go on with each run; all results are those of before, or all are the new ones."""
        said_by = {}
        for name in ("fit a", "fit b", "video"):
            code, said_by[name] = perform(*COMMANDS[name], "--resume", "--out", str(out))
            if code != 0 and "other settings" not in said_by[name]:
                self.fault(f"{label}: {name} --resume: exit {code}: {said_by[name]}")
        found = contents(out)
        fits = [self.before, self.whole["fit a"], self.whole["fit b"]]
        if of_fit(found) not in [of_fit(files) for files in fits]:
            self.fault(f"{label}: the results of fit are not those of one run")
        for stem in STEMS:
            videos = [of_stem(files, stem) for files in (self.before, self.whole["video"])]
            if of_stem(found, stem) not in videos:
                self.fault(f"{label}: the results of {stem} are not those of one run")
        if more := sorted(set(found) - set(self.before) - set(self.whole["video"])):
            self.fault(f"{label}: left behind: {', '.join(more[:4])}")
        self.counts["of these, fit was gone on with"] += of_fit(found) != of_fit(self.before)
        self.counts["of these, a video was gone on with"] += any(
            of_stem(found, stem) != of_stem(self.before, stem) for stem in STEMS
        )

    def work(self, kills: int, minutes: float) -> None:
        until = time.monotonic() + 60 * minutes
        longest = self.undisturbed()
        print(f"undisturbed, the longest takes {longest:.1f} s", flush=True)
        following = {name: start(name) for name in COMMANDS}
        while self.counts[RUNS] < kills and time.monotonic() < until:
            children, following = following, {name: start(name) for name in COMMANDS}
            number = self.counts[RUNS] + 1
            out = Path(f"out_{number}").absolute()
            shutil.copytree(self.folder, out)
            delay = self.random.uniform(0, longest)
            self.begin(children, out)
            time.sleep(delay)
            ended = {name: p for name, p in children.items() if p.poll() is not None}
            for process in children.values():
                process.send_signal(signal.SIGKILL)
            said = {name: process.communicate()[0] for name, process in children.items()}
            label = f"kill {number}, after {delay:.2f} s"
            self.refusals({name: json.loads(said[name]) for name in ended}, label)
            self.counts[RUNS] += 1
            self.counts["of these, when some had ended"] += bool(ended)
            self.look(out, label)
            self.go_on(out, label)
            self.look(out, f"{label}, and gone on with")
            shutil.rmtree(out)
            print(f"{label}: {len(self.wrong)} faults so far", flush=True)
        for process in following.values():
            process.kill()
            process.communicate()


def main() -> None:
    parser = killing_command_line(__doc__, kills=KILLS, seed=21)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child)
        return
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        make_inputs(Path(name))
        trials = Trials(args.seed)
        trials.work(args.kills, args.minutes)
        os.chdir(HERE)
    text = (
        f"{IMAGES} images a `fit`, two clips of {FRAMES} frames a `video`; all four processes are "
        "killed at the same moment."
    )
    title, wrong = "Two runs into one folder", {"faults": trials.wrong}
    write_killed(HERE, title, text, trials.counts, wrong, asked=KILLS, add=args.add)


if __name__ == "__main__":
    main()
