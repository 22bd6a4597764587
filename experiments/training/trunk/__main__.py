"""Train a trunk and a fine stage on photographs, or measure them.

python -m experiments.training.trunk train --run-dir DIR
python -m experiments.training.trunk fine --run-dir FINE --trunk DIR/trunk.npz
python -m experiments.training.trunk assemble MODEL --trunk DIR/trunk.npz --fine FINE --shape SHAPE
python -m experiments.training.trunk evaluate DIR/trunk.npz DIR/trunk.npz+FINE MODEL
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
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
    train.add_argument(
        "--split", type=int, default=2, choices=(1, 2), help="values a cell: squared"
    )
    fine = commands.add_parser("fine", help="train the networks of eyes and mouth, likewise")
    fine.add_argument("--trunk", type=Path, help="trunk.npz (default: of the trunk's folder)")
    fine.add_argument("--region", choices=("eye", "mouth"), help="one of them alone")
    for command, epochs in ((train, 90), (fine, 40)):
        command.add_argument("--run-dir", type=Path, help="checkpoints, logs, weights")
        command.add_argument("--epochs", type=int, default=epochs)
        command.add_argument("--batch", type=int, default=32)
        command.add_argument("--rate", type=float, default=2e-3)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--every", type=int, default=1, help="epochs from report to report")
        command.add_argument("--threads", type=int, default=1)
    assemble = commands.add_parser("assemble", help="a jclnf model of what was trained")
    assemble.add_argument("model", type=Path, help="file to write, .safetensors")
    assemble.add_argument("--trunk", type=Path, required=True, help="trunk.npz")
    assemble.add_argument("--fine", type=Path, help="the fine stage's folder")
    assemble.add_argument("--shape", type=Path, required=True, help="a shape model of shape.py")
    assemble.add_argument("--start", type=Path, help="start.npz of start.py")
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
    if args.command == "assemble":
        import jclnf
        from experiments.training.trunk.assemble import assembled

        made = assembled(args.trunk, args.fine, args.shape, args.start, args.model.stem)
        jclnf.save_model(made, args.model)
        return
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # The allocator reads these when a process begins.
        environment = {**os.environ, **ALLOCATION}
        if args.threads == 1:
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {THREADS}".strip()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    import cv2

    cv2.setNumThreads(1)
    {"train": train, "fine": fine}[args.command](args)


def run_directory(args: Any, name: str) -> Path:
    import platformdirs

    folder = args.run_dir or Path(platformdirs.user_cache_dir("jclnf")) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train(args: Any) -> None:
    import numpy as np

    from experiments.training.trunk.augment import Example, example
    from experiments.training.trunk.faces import read_faces
    from experiments.training.trunk.frame import Frame, mean_shape
    from experiments.training.trunk.locate import Trained, trunk_landmarks
    from experiments.training.trunk.network import Network

    folder = run_directory(args, "trunk")
    faces, held = read_faces("train", LARGEST), read_faces("held out", LARGEST)
    frame = Frame.of(mean_shape(faces.points), SIDE, MARGIN)

    network = Network(split=args.split, stem=STEM)

    def make(index: int, rng: np.random.Generator) -> Example:
        return example(faces.images[index], faces.points[index], frame, network.stride, rng)

    def landmarks(trained: Trained) -> np.ndarray:
        return trunk_landmarks(trained)(held.images, held.boxes)

    print(f"{len(faces)} faces, {len(held)} held out, in {folder}", flush=True)
    run(args, folder, "trunk", network, frame, make, len(faces), landmarks, held.points)


def fine(args: Any) -> None:
    import numpy as np

    from experiments.training.trunk.augment import Example
    from experiments.training.trunk.faces import read_faces
    from experiments.training.trunk.fine import LARGEST, REGIONS, Region, refined
    from experiments.training.trunk.frame import Frame, mean_shape
    from experiments.training.trunk.locate import Trained, trunk_landmarks

    folder = run_directory(args, "fine")
    faces, held = read_faces("train", LARGEST), read_faces("held out", LARGEST)
    mean = mean_shape(faces.points)
    trunk = args.trunk or run_directory(argparse.Namespace(run_dir=None), "trunk") / "trunk.npz"
    coarse = trunk_landmarks(Trained.load(trunk))(held.images, held.boxes)
    print(f"{len(faces)} faces, {len(held)} held out, in {folder}", flush=True)

    def train_region(region: Region, frame: Frame) -> None:
        def make(index: int, rng: np.random.Generator) -> Example:
            return region.example(faces.images[index], faces.points[index], frame, rng)

        def landmarks(trained: Trained) -> np.ndarray:
            return refined(region, trained, held.images, coarse)

        of = region.network, frame, make, len(faces), landmarks, held.points
        run(args, folder, region.name, *of)

    for region in REGIONS:
        if args.region in (None, region.name):
            train_region(region, region.frame(mean))


def run(
    args: Any,
    folder: Path,
    name: str,
    network: Any,
    frame: Any,
    make: Any,
    count: int,
    landmarks: Callable[[Any], Any],
    truth: Any,
) -> None:
    """Train one network; its weights and figures are in the folder after each epoch."""
    from experiments.training.trunk.evaluate import measures
    from experiments.training.trunk.locate import Trained
    from experiments.training.trunk.network import Weights
    from experiments.training.trunk.train import Schedule, train

    def report(epoch: int, loss: float, pace: float, weights: Weights) -> None:
        trained = Trained(network, weights, frame)
        trained.save(folder / f"{name}.npz")
        text = ", ".join(f"{k} {v:.3f}" for k, v in measures(landmarks(trained), truth).items())
        line = f"{time.strftime('%H:%M:%S')} {name}, epoch {epoch}: loss {loss:.4f}, "
        line += f"{pace:.2f} s a step; held out: {text}"
        with open(folder / f"{before}log.txt", "a") as log:
            print(line, file=log)
        print(line, flush=True)

    before = "" if name == "trunk" else f"{name}_"
    checkpoint = folder / f"{before}checkpoint.npz"
    schedule = Schedule(args.epochs, args.batch, rate=args.rate, seed=args.seed)
    found = train(
        network, make, count, schedule, checkpoint=checkpoint, report=report, every=args.every
    )
    Trained(network, found, frame).save(folder / f"{name}.npz")


SIDE, STEM, MARGIN = 256, 8, 1.45
LARGEST = 180.0

if __name__ == "__main__":
    main()
