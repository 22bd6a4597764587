"""Trains the model that comes with jclnf: models/default.safetensors.

    python -m experiments.training [FOLDER]

FOLDER keeps the checkpoints (default: default.training beside the models); a run that was cut short
goes on from them. About an hour on two cores. It is what

    python -m experiments.training.ict ict.npz
    jclnf train faces/landmarks.csv --split train --held-out 0.03 --shape-prior ict.npz \
        --out default.safetensors

does. Choices (sizes, lengths, rates) were made with a tenth of the people held out, which is the
command's default; the final training learns from nearly all of them.
"""

import os
import sys
from pathlib import Path

from experiments.common import DATA, REPOSITORY, command_line


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", nargs="?", help="of the checkpoints")
    args = parser.parse_args()
    import numpy as np

    from experiments.training.ict import examples
    from jclnf.cli._main import main as command

    out = REPOSITORY / "models" / "default.safetensors"
    prior = Path(os.environ.get("TMPDIR", "/tmp")) / "ict.npz"
    np.savez(prior, examples=examples())
    data = DATA / "faces" / "landmarks.csv"
    arguments = ["train", str(data), "--split", "train", "--held-out", "0.03"]
    arguments += ["--shape-prior", str(prior)]
    if args.folder:
        arguments += ["--work", args.folder]
    sys.exit(command([*arguments, "--out", str(out)]))


if __name__ == "__main__":
    main()
