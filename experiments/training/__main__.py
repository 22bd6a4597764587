"""Trains the model that comes with jclnf: models/default.safetensors.

    python -m experiments.training [FOLDER]

An hour on one fast core, three on older ones. FOLDER keeps the checkpoints (default: jclnf/training
in the user's cache folder); a run that was cut short goes on from them.
"""

import subprocess
import sys
from pathlib import Path

import platformdirs

from experiments.common import REPOSITORY, command_line

TRUNK = "experiments.training.trunk"
MODES = 40


def stages(folder: Path) -> list[tuple[Path, list[str]]]:
    """What each stage makes, and its command, in their order."""
    shape, start = folder / "shape" / f"shape_{MODES}.npz", folder / "start" / "start.npz"
    trunk, fine = folder / "trunk" / "trunk.npz", folder / "fine"
    plain, out = folder / "plain.safetensors", REPOSITORY / "models" / "default.safetensors"
    parts = ["--trunk", trunk, "--fine", fine, "--shape", shape, "--start", start]
    commands: list[tuple[Path, list[object]]] = [
        (shape, [f"{TRUNK}.shape", "--run-dir", shape.parent]),
        (start, [f"{TRUNK}.start", shape, "--run-dir", start.parent]),
        (trunk, [TRUNK, "train", "--run-dir", trunk.parent]),
        (fine / "mouth.npz", [TRUNK, "fine", "--run-dir", fine, "--trunk", trunk]),
        (plain, [TRUNK, "assemble", plain, *parts]),
        (out, [f"{TRUNK}.finish", plain, out]),
    ]
    return [(made, [str(word) for word in command]) for made, command in commands]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="of the checkpoints")
    args = parser.parse_args()
    folder = args.folder or Path(platformdirs.user_cache_dir("jclnf")) / "training"
    for made, command in stages(folder.resolve()):
        print(f"{made.name}: {' '.join(command)}", flush=True)
        done = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, check=False)
        if done.returncode:
            sys.exit(f"{command[0]} ended with {done.returncode}; the next run goes on from there")


if __name__ == "__main__":
    main()
