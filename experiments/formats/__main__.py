"""Are all frames of all kinds of videos read, the right way up and at the right times?

FFmpeg makes a video of each kind and is asked what it sees in it: the time stamps (`showinfo`) and
the frames, deinterlaced, turned and with square pixels. `jclnf` has to find the same.
"""

import argparse
import os
import re
import shlex
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from experiments.common import Row, table, write_results
from experiments.formats._cases import CASES, RATE, SECONDS, Case
from jclnf.errors import VideoError
from jclnf.video._open import open_source

HERE = Path(__file__).resolve().parent

WITHIN = 1.0
"""Milliseconds that a time may be off."""
ALIKE = 6.0
"""Grey levels that frames may differ on average: versions of FFmpeg scale differently."""


def executable(path: str | None) -> str:
    if path is None:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
    return path


def ffmpeg(program: str, arguments: str, **places: Path) -> subprocess.CompletedProcess[bytes]:
    words = [word.format(**places) for word in shlex.split(arguments)]
    return subprocess.run([program, "-hide_banner", "-y", *words], capture_output=True)


def make(program: str, case: Case, folder: Path) -> Path:
    """The file of a case."""
    path = folder / f"{case.kind} - {case.name}"
    first = folder / f"first{path.suffix}" if case.after else path
    source = f"-f lavfi -i testsrc=s={case.size}:r={case.rate}:d={SECONDS}"
    if case.rate > 500:
        source += " -frames:v 400"
    if case.sound:
        source += f" -f lavfi -i sine=d={SECONDS} -shortest"
    done = ffmpeg(program, f"-v error {source} {case.arguments} {{out}}", out=first)
    if case.after and not done.returncode:
        after = case.after.replace("{0}", "{first}").replace("{}", "{first}")
        done = ffmpeg(program, f"-v error {after} {{out}}", out=path, first=first)
    if done.returncode:
        raise RuntimeError(f"{path.name}: {done.stderr.decode()[-500:]}")
    if case.edit is not None:
        path.write_bytes(case.edit(path.read_bytes()))
    return path


def seen_by_ffmpeg(program: str, path: Path, sideways: bool) -> tuple[list[float], bytes]:
    """The times of the frames from the first one on, and the pixels of all of them."""
    scale = "iw:'round(ih/sar)'" if sideways else "'round(iw*sar)':ih"
    chain = f"showinfo,bwdif=mode=send_frame:deint=interlaced,scale={scale}:flags=bicubic,setsar=1"
    done = ffmpeg(
        program,
        f"-i {{path}} -map 0:v:0 -vf {shlex.quote(chain)} -fps_mode passthrough "
        "-pix_fmt bgr24 -f rawvideo -",
        path=path,
    )
    text = done.stderr.decode(errors="replace")
    base = re.search(r"config in time_base: (\d+)/(\d+)", text)
    stamps = [int(stamp) for stamp in re.findall(r"n: *\d+ pts: *(-?\d+)", text)]
    if base is None or not stamps:
        return [], done.stdout
    return [(s - stamps[0]) * int(base[1]) / int(base[2]) for s in stamps], done.stdout


def check(program: str, case: Case, path: Path) -> tuple[list[str], dict[str, float]]:
    """What is wrong, and the figures."""
    try:
        source = open_source(path)
        frames = list(source.frames())
    except VideoError as error:
        return ([] if case.faulty else [str(error)]), {}
    problems = source.problems
    if case.faulty:
        return ([] if problems else ["nothing is said"]), {"frames": len(frames)}
    wrong = [f"said: {line}" for line in problems]
    times, pixels = seen_by_ffmpeg(program, path, case.sideways)
    found = np.array([frame.time for frame in frames])
    figures: dict[str, float] = {"frames": len(frames)}
    if len(times) != len(frames):
        wrong.append(f"{len(frames)} frames, not {len(times)}")
    elif case.known or len(set(times)) == len(times):
        figures["off"] = (
            1e3 * float(np.abs(found - times).max()) if "no time" not in case.name else 0
        )
    if case.known:
        at = case.times or (lambda k: float(k / case.rate))
        built = np.array([at(k) for k in range(len(frames))])
        figures["off from what it was built from"] = 1e3 * float(np.abs(found - built).max())
    wrong += [
        f"{name} by {figures[name]:.2f} ms" for name in figures
        if name.startswith("off") and figures[name] > WITHIN
    ]  # fmt: skip
    width, height = source.size
    if len(pixels) != len(frames) * width * height * 3:
        count = len(pixels) / max(1, len(times)) / 3
        return [*wrong, f"frames of {width} x {height}, not of {count:.0f} pixels"], figures
    theirs = np.frombuffer(pixels, np.uint8).reshape(len(frames), height, width, 3)
    figures["apart"] = max(
        float(np.abs(frame.image.astype(int) - other).mean())
        for frame, other in zip(frames, theirs, strict=True)
        if frame.image is not None
    )
    if figures["apart"] > ALIKE:
        wrong.append(f"frames differ by {figures['apart']:.1f} grey levels")
    return wrong, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ffmpeg", help="the program (default: imageio-ffmpeg's)")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    args = parser.parse_args()
    program = executable(args.ffmpeg or os.environ.get("FFMPEG"))
    version = ffmpeg(program, "-version").stdout.decode().split()[2]
    results = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for case in CASES:
            if args.only not in f"{case.kind} {case.name}":
                continue
            path = make(program, case, Path(name))
            wrong, figures = check(program, case, path)
            path.unlink()
            results[case.kind].append((case, wrong, figures))
            print(case.kind, case.name, figures, "; ".join(wrong), flush=True)
    if args.only:
        return
    lines, rows, missed = [], [], []
    for kind, done in results.items():
        off = [v for *_, figures in done for k, v in figures.items() if k.startswith("off")]
        apart = [figures["apart"] for *_, figures in done if "apart" in figures]
        bad = [f"{kind}, {case.name}: {'; '.join(wrong)}" for case, wrong, _ in done if wrong]
        missed += bad
        asked = None if kind == "overwritten" else 0  # FFmpeg's decoders do not tell of all damage
        rows.append(Row("videos that are not as they should be", kind, len(done), len(bad), asked))
        worst = [f"{max(off):.2f} ms" if off else "", f"{max(apart):.1f}" if apart else ""]
        names = ", ".join(case.name for case, *_ in done)
        lines.append([kind, f"{len(done) - len(bad)} of {len(done)}", *worst, names])
    body = (
        f"Videos of {SECONDS} s, {RATE} frames a second where nothing else is said, made by FFmpeg "
        f"{version}.\n\n"
        + table(["", "right", "times off by", "grey levels apart", "videos"], lines)
        + "".join(f"\n- {line}" for line in ["", *missed][1:])
    )
    write_results(HERE, "Formats", body, {"ffmpeg": version, "rows": rows, "wrong": missed})


if __name__ == "__main__":
    main()
