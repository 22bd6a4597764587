"""A learned start for the trunk's shape model, so that one look is enough.

    python -m experiments.training.trunk.start SHAPE.npz --run-dir DIR

Trained as that of the bundled model is (`jclnf.train`), on the photographs; goes on where it was
stopped. `DIR/start.npz` has its weights.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.training.trunk.faces import read_faces
from experiments.training.trunk.shape import load
from jclnf.fitting import LearnedStart, start_network, start_shapes
from jclnf.train._examples import BoxExamples
from jclnf.train._faces import MIRROR_68
from jclnf.train._faces import Faces as Packed
from jclnf.train._loop import Progress, TrainConfig
from jclnf.train._networks import folded, start_loss, train_network

LARGEST = 110.0
TURN = 0.35
"""Standard deviation of turns, radians: heads in photographs are turned further than in videos."""


def examples(part: str) -> BoxExamples:
    """Boxes of the photographs, and of their mirror images."""
    faces = read_faces(part, LARGEST)
    packed = Packed(faces.images, faces.points).with_mirrored(MIRROR_68)
    return BoxExamples(packed, turn=TURN)


def read_start(path: Path) -> LearnedStart:
    """The start in a file."""
    with np.load(path) as arrays:
        return LearnedStart({name: jnp.asarray(arrays[name]) for name in arrays.files})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=Path)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    pdm = load(args.shape).pdm
    args.run_dir.mkdir(parents=True, exist_ok=True)
    log = args.run_dir / "log.txt"
    trained = train_network(
        start_network,
        start_shapes(pdm.n_modes),
        ("out",),
        start_loss(pdm),
        examples("train"),
        examples("held out"),
        TrainConfig(args.epochs, batch_size=64),
        Progress(
            "start",
            args.run_dir / "start.eqx",
            lambda history: log.write_text("\n".join(map(str, history))),
            quiet=True,
        ),
    )
    weights = {name: np.asarray(array) for name, array in folded(*trained).items()}
    np.savez(args.run_dir / "start.npz", **weights)


if __name__ == "__main__":
    main()
