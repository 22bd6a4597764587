"""Videos before and after a change: `jclnf video` of two checkouts, timed in alternation.

    python -m experiments.benchmarks.compare_video BEFORE [AFTER] [--alternations 3] [--repeats 5]

BEFORE and AFTER are folders of working copies (AFTER is this one unless given). Each follows a
recorded clip, as it is and several times in a row, in processes of its own that take turns; what
the longer one takes more, by its frames more, is the cost of a frame without the start. Nothing is
recorded. Needs the development data.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from experiments.common import OPENFACE, model_file, table

CLIP = OPENFACE / "samples" / "default.wmv"
OPENFACE_MODEL = "OpenFace's model, one face"
CASES: dict[str, list[str]] = {
    "bundled model, one face": ["--one"],
    "bundled model, all faces": [],
    OPENFACE_MODEL: ["--one", "--detector", "haar", "--model"],
}
"""Arguments of `jclnf video`."""


def spent(checkout: Path, clip: Path, arguments: list[str]) -> np.ndarray:
    """Seconds, and seconds of processor time, of one run of the command."""
    with tempfile.TemporaryDirectory() as out:
        before, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "jclnf", "video", clip, *arguments, "--no-plot", "--out", out],
            check=True,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            capture_output=True,
        )
        wall, now = time.perf_counter() - before, resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime])


def looped(clip: Path, repeats: int, to: Path) -> int:
    """Write the clip's frames so many times in a row, as H.264; gives how many frames it has."""
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(to), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "12"})
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames * repeats):
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=Path())
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="of the clip in the longer one")
    args = parser.parse_args()
    checkouts = (args.before.resolve(), args.after.resolve())
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        short, long = (Path(temporary) / f"{length}.mp4" for length in ("short", "long"))
        looped(CLIP, 1, short)
        more = (args.repeats - 1) * looped(CLIP, args.repeats, long)
        for name, arguments in CASES.items():
            given = (
                [*arguments, str(model_file("general"))] if name == OPENFACE_MODEL else arguments
            )
            for checkout in checkouts:  # compiles
                spent(checkout, short, given)
            turns = []
            for number in range(args.alternations):
                taken = {}
                for checkout in checkouts[:: 1 if number % 2 else -1]:
                    taken[checkout] = spent(checkout, long, given) - spent(checkout, short, given)
                turns.append([1e3 * taken[checkout] / more for checkout in checkouts])
            wall, processor = np.median(turns, 0).T
            ratio = np.median(np.divide(*np.swapaxes(turns, 0, 1)[::-1]), 0)
            lines.append(
                [name, *(f"{1e3 / w:.0f}" for w in wall), f"{1 / ratio[0]:.2f}"]
                + [*(f"{p:.1f} ms" for p in processor), f"{ratio[1]:.2f}"]
            )
            print(lines[-1], flush=True)
    head = [
        "",
        "frames/s before",
        "after",
        "ratio",
        "processor time a frame before",
        "after",
        "ratio",
    ]
    print(table(head, lines))


if __name__ == "__main__":
    main()
