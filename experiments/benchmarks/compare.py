"""Single fits before and after a change: two checkouts of jclnf, timed in alternation.

    python -m experiments.benchmarks.compare BEFORE [AFTER] [--alternations 15] [--faces 12]

BEFORE and AFTER are folders of working copies (AFTER is this one unless given). Each is fitted in a
process of its own, by the interpreter that runs this; the two take turns, so that other work on the
machine slows both. Medians of a fit's time, the median of the turns' ratios, and the distance of
the landmarks from each other. Nothing is recorded. OpenFace's model needs the development data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 512
"""Of the images, so that a fit is compiled once."""


def work(file: Path) -> None:
    """Answer each line of input with the seconds and the landmarks of every model's fits."""
    import jax
    import jax.numpy as jnp

    import jclnf

    with np.load(file) as cases:
        faces = [(jnp.asarray(i), jnp.asarray(b)) for i, b in zip(*cases.values(), strict=True)]
    models = {"bundled": jclnf.load_model()}
    main_file = os.environ["COMPARE_OPENFACE"]
    if Path(main_file).exists():
        models["OpenFace CCNF"] = jclnf.load_openface(main_file)
    ready = {}
    for name, model in models.items():
        params = model.defaults if name == "bundled" else jclnf.FitParams.openface(model)
        prepare = getattr(model, "prepare", None)  # elsewhere the library does it by itself
        ready[name] = jax.device_put(prepare(params) if prepare else model), params
    print(json.dumps([str(Path(jclnf.__file__).parent), list(ready)]), flush=True)
    for _ in sys.stdin:
        answer = {}
        for name, (model, params) in ready.items():
            seconds, landmarks = [], []
            for image, box in faces:
                start = time.perf_counter()
                found = jax.block_until_ready(jclnf.fit(model, image, box, params).landmarks)
                seconds.append(time.perf_counter() - start)
                landmarks.append(np.asarray(found).tolist())
            answer[name] = {"seconds": float(np.median(seconds)), "landmarks": landmarks}
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that fits with the jclnf of a working copy."""

    def __init__(self, checkout: Path, cases: Path, openface: Path) -> None:
        paths = {"PYTHONPATH": str(checkout), "COMPARE_OPENFACE": str(openface)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--work", str(cases)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | paths,
        )
        package, self.models = self.read()
        if Path(package) != checkout / "jclnf":
            sys.exit(f"{checkout} is no working copy of jclnf: {package} was imported")

    def read(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def turn(self) -> dict[str, Any]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="?", default=Path())
    parser.add_argument("--alternations", type=int, default=15)
    parser.add_argument("--faces", type=int, default=12)
    args = parser.parse_args()
    from experiments.common import faces, model_file, table
    from tests.support.recordings import on_canvas

    with tempfile.TemporaryDirectory() as temporary:
        picked = on_canvas(faces()[: args.faces], (SIDE, SIDE))
        cases = Path(temporary) / "cases.npz"
        np.savez(cases, images=[f.image for f in picked], boxes=[f.box for f in picked])
        folders = (args.before.resolve(), args.after.resolve())
        pair = [Worker(checkout, cases, model_file("general")) for checkout in folders]
        first = [worker.turn() for worker in pair]
        turns = []
        for number in range(args.alternations):
            order = pair if number % 2 else pair[::-1]
            answers = {id(worker): worker.turn() for worker in order}
            turns.append([answers[id(worker)] for worker in pair])
    lines = []
    for name in pair[0].models:
        seconds = np.array([[turn[name]["seconds"] for turn in both] for both in turns])
        apart = np.linalg.norm(np.subtract(*(turn[name]["landmarks"] for turn in first)), axis=-1)
        before, after = (f"{1e3 * np.median(column):.2f} ms" for column in seconds.T)
        ratio = np.median(seconds[:, 1] / seconds[:, 0])
        lines.append([name, before, after, f"{ratio:.3f}", f"{apart.max():.2g} px"])
    print(table(["model", "before", "after", "after / before", "largest distance"], lines))


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]))
    else:
        main()
