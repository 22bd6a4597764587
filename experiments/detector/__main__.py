"""Train the face detector, or compare it with others.

python -m experiments.detector train --run-dir DIR
python -m experiments.detector train --run-dir DIR2 --begin DIR [--empty PHOTOGRAPHS]
python -m experiments.detector export DIR FILE.safetensors
python -m experiments.detector evaluate
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from experiments.training.trunk.__main__ import ALLOCATION, THREADS

CROPS = 1024
"""Of the held-out images, to measure on after each epoch."""

TURN, RATE = 0.025, 1.5e-3
"""Largest steps, of a kernel as a part of its norm and of Adam."""
AGAIN = 0.6
"""Of these where it learns from its mistakes."""
EPOCHS = 21, 12
MANY = 4000
"""Drawings in which mistakes are looked for."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train it; goes on where it was stopped")
    train.add_argument("--run-dir", type=Path, required=True, help="checkpoints, labels, weights")
    train.add_argument(
        "--begin", type=Path, help="run whose weights go on learning, from their mistakes"
    )
    train.add_argument(
        "--empty", type=Path, help="folder with the photographs that without_faces.txt names"
    )
    train.add_argument("--epochs", type=int)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--every", type=int, default=1, help="epochs from report to report")
    export = commands.add_parser("export", help="write the weights as the package has them")
    export.add_argument("run_dir", type=Path)
    export.add_argument("file", type=Path)
    evaluate = commands.add_parser("evaluate", help="compare detectors")
    evaluate.add_argument("--quick", action="store_true", help="on what was held out alone")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.command == "evaluate":
        from experiments.detector.evaluate import main as evaluate

        evaluate(quick=args.quick)
        return
    if args.command == "export":
        export(args.run_dir / "detector.npz", args.file)
        return
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # The allocator reads these when a process begins.
        flags = f"{os.environ.get('XLA_FLAGS', '')} {THREADS}".strip()
        environment = {**os.environ, **ALLOCATION, "XLA_FLAGS": flags}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    train(args)


def train(args: Any) -> None:
    import cv2
    import numpy as np

    from experiments.detector.examples import Examples, Source
    from experiments.detector.held_out import measures
    from experiments.detector.network import Network
    from experiments.detector.pictures import (
        Picture,
        drawn,
        lettered,
        mistakes,
        mistakes_in,
        photographs_without,
        pictures,
        textures,
        things,
    )
    from experiments.training.trunk.train import Schedule
    from experiments.training.trunk.train import train as run

    cv2.setNumThreads(1)
    folder = args.run_dir
    folder.mkdir(parents=True, exist_ok=True)

    def read(part: str, source: str) -> list[Picture]:
        name = f"{source} {part}.npz"
        if args.begin and not (folder / name).exists():
            shutil.copyfile(args.begin / name, folder / name)
        return pictures(part, source, folder / name)

    photographs, frames = (read("train", source) for source in ("photographs", "faces"))
    held = {source: read("held out", source) for source in ("photographs", "faces")}
    nothing = np.zeros((0, 4))
    empty = [*textures(), *drawn(160, args.seed)]
    if args.begin:
        empty += [*drawn(140, args.seed + 2), *lettered(300, args.seed), *things(100, args.seed)]
    if args.empty:
        empty += photographs_without(args.empty)
    # Photographs, of more people and with corrected landmarks, twice.
    sources = [Source.of(picture) for picture in [*photographs, *frames]]
    hard = []
    if args.begin:
        of = [("photographs", photographs), ("faces", frames)]
        places = [p for n, ps in of for p in mistakes(n, ps, folder / f"{n} mistakes.npz")]
        hard = [(s, box) for s, boxes in zip(sources, places, strict=True) for box in boxes]
        many = [*empty, *drawn(MANY, args.seed + 3), *lettered(MANY // 8, args.seed + 3)]
        many += things(MANY // 2, args.seed + 3)
        places = mistakes_in(many, folder / "drawings mistakes.npz")
        for image, boxes in zip(many, places, strict=True):
            if len(boxes):
                source = Source.of(Picture(image, None, nothing, nothing))
                hard += [(source, box) for box in boxes]
    sources += sources[: len(photographs)]
    without = [Source.of(Picture(image, None, nothing, nothing)) for image in empty]
    make = Examples(sources, without, hard)
    others = Examples([Source.of(p) for source in held.values() for p in source], without)
    crops = [
        others(i % len(others.sources), np.random.default_rng([args.seed + 1, i]))
        for i in range(CROPS)
    ]
    what = f"{len(sources)} sources, {len(empty)} without faces, {len(hard)} mistakes"
    print(f"{what}, in {folder}", flush=True)

    def report(epoch: int, loss: float, pace: float, weights: Any) -> None:
        np.savez(folder / "detector.npz", **weights)
        line = f"{time.strftime('%H:%M:%S')} epoch {epoch}: loss {loss:.4f}, {pace:.2f} s a step; "
        line += ", ".join(f"{k} {v:.4f}" for k, v in measures(weights, crops).items())
        with open(folder / "log.txt", "a") as log:
            print(line, file=log)
        print(line, flush=True)

    part, epochs = (AGAIN, EPOCHS[1]) if args.begin else (1.0, EPOCHS[0])
    schedule = Schedule(
        args.epochs or epochs, args.batch, turn=part * TURN, rate=part * RATE, seed=args.seed
    )
    checkpoint = folder / "checkpoint.npz"
    found = run(
        Network(),
        make,
        len(sources),
        schedule,
        checkpoint=checkpoint,
        begin=args.begin and args.begin / "checkpoint.npz",
        report=report,
        every=args.every,
    )
    np.savez(folder / "detector.npz", **found)


def export(weights: Path, file: Path) -> None:
    """Write weights in half precision."""
    import numpy as np
    from safetensors.numpy import save_file

    with np.load(weights) as arrays:
        save_file({name: arrays[name].astype(np.float16) for name in arrays.files}, file)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
