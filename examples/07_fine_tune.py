"""Training the experts of a model further, on photographs of your own.

python examples/07_fine_tune.py [DATA] [OUT.safetensors] [MODEL]

Fifty photographs will do; `jclnf train DATA --from default --out MODEL`, which asks for 16 at
least, is the same with checkpoints, and calibrates confidence and covariances as well. The two
people here are too few to learn from: the model stays as it is unless the one who was held out is
better off, which may be chance.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import samples

import jclnf
from jclnf.train import MIRROR_68, Faces, TrainConfig, cut_out, fine_tune, fine_tune_config

data = sys.argv[1] if len(sys.argv) > 1 else samples.annotated(Path("annotated"))
out = sys.argv[2] if len(sys.argv) > 2 else "fine_tuned.safetensors"
model = jclnf.load_model(sys.argv[3] if len(sys.argv) > 3 else None)

annotated = jclnf.annotations.read_annotations(data)
learned, held_out = jclnf.annotations.split_by_identity(annotated, 0.2, seed=0)


def packed(annotated):
    """Small grey images around the faces, with their landmarks."""
    pairs = [cut_out(jclnf.images.read_image(face.image), face.landmarks) for face in annotated]
    return Faces([image for image, _ in pairs], np.stack([points for _, points in pairs]))


few = len(learned) < 20
config = TrainConfig(1, batch_size=2) if few else fine_tune_config(len(learned))
with tempfile.TemporaryDirectory() as folder:
    trained = fine_tune(
        model,
        packed(learned),
        packed(held_out),
        MIRROR_68,
        Path(folder) / "training",
        config,
        quiet=True,
        log=print,
    )
jclnf.save_model(trained, out)
print(f"model in {out}")
