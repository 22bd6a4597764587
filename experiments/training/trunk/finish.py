"""The last steps of a model: how far it is to be trusted, and how far its landmarks may be off.

    python -m experiments.training.trunk.finish MODEL.safetensors OUT.safetensors

Confidence is learned from fits of the photographs and calibrated on those held out, on which the
covariances are calibrated too, as `jclnf train` does it.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from experiments.training.trunk.__main__ import LARGEST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="as `assemble` makes it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--effort", type=float, default=1.0, help="factor on the numbers of fits")
    args = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    import jclnf
    from experiments.training.trunk.faces import read_faces
    from jclnf.train import MIRROR_68, Faces, with_confidence

    faces, held_out = (read_faces(part, LARGEST) for part in ("train", "held out"))
    packed = [Faces(part.images, part.points) for part in (faces, held_out)]
    model = dataclasses.replace(jclnf.load_model(args.model), name=args.out.stem)
    model = with_confidence(model, *packed, MIRROR_68, effort=args.effort, quiet=True)
    jclnf.save_model(model, args.out)


if __name__ == "__main__":
    main()
