"""Train a trunk on photographs, or measure one.

python -m experiments.training.trunk train --run-dir DIR
python -m experiments.training.trunk evaluate DIR/trunk.npz
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

THREADS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
"""Each step's large arrays are taken from the memory of the step before: a tenth of the time."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the trunk; goes on where it was stopped")
    train.add_argument("--run-dir", type=Path, help="checkpoint, log and weights (default: cache)")
    train.add_argument("--epochs", type=int, default=60)
    train.add_argument("--batch", type=int, default=32)
    train.add_argument("--rate", type=float, default=2e-3)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--split", type=int, default=2, choices=(1, 2), help="values a cell: squared"
    )
    train.add_argument("--threads", type=int, default=1)
    evaluate = commands.add_parser("evaluate", help="measure models on photographs")
    evaluate.add_argument("models", nargs="*", help="trunk.npz, or models as `jclnf eval` takes")
    evaluate.add_argument("--part", default="held out", choices=("held out", "test"))
    evaluate.add_argument("--robustness", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.command == "evaluate":
        from experiments.training.trunk.evaluate import main as evaluate

        evaluate(args.models, args.part, args.robustness)
        return
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # The allocator reads these when a process begins.
        environment = {**os.environ, **ALLOCATION}
        if args.threads == 1:
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {THREADS}".strip()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    train(args)


def train(args: Any) -> None:
    import cv2
    import numpy as np
    import platformdirs

    from experiments.training.trunk.augment import Example, example
    from experiments.training.trunk.evaluate import measures
    from experiments.training.trunk.faces import read_faces
    from experiments.training.trunk.frame import Frame, mean_shape
    from experiments.training.trunk.locate import Trained, trunk_landmarks
    from experiments.training.trunk.network import Network, Weights
    from experiments.training.trunk.train import Schedule
    from experiments.training.trunk.train import train as run

    cv2.setNumThreads(1)
    folder = args.run_dir or Path(platformdirs.user_cache_dir("jclnf")) / "trunk"
    folder.mkdir(parents=True, exist_ok=True)
    faces, held = read_faces("train", LARGEST), read_faces("held out", LARGEST)
    frame = Frame.of(mean_shape(faces.points), SIDE, MARGIN)
    network = Network(split=args.split)
    schedule = Schedule(args.epochs, args.batch, args.rate, seed=args.seed)

    def make(index: int, rng: np.random.Generator) -> Example:
        return example(faces.images[index], faces.points[index], frame, rng)

    def report(epoch: int, loss: float, pace: float, weights: Weights) -> None:
        trained = Trained(network, weights, frame)
        trained.save(folder / "trunk.npz")
        found = trunk_landmarks(trained)(held.images, held.boxes)
        text = ", ".join(f"{k} {v:.3f}" for k, v in measures(found, held.points).items())
        line = f"{time.strftime('%H:%M:%S')} epoch {epoch}: loss {loss:.4f}, {pace:.2f} s a step"
        line += f"; held out: {text}"
        with open(folder / "log.txt", "a") as log:
            print(line, file=log)
        print(line, flush=True)

    print(f"{len(faces)} faces, {len(held)} held out, in {folder}", flush=True)
    weights = run(
        network,
        make,
        len(faces),
        schedule,
        checkpoint=folder / "checkpoint.npz",
        report=report,
    )
    Trained(network, weights, frame).save(folder / "trunk.npz")


SIDE, MARGIN = 128, 1.45
LARGEST = 110.0

if __name__ == "__main__":
    main()
