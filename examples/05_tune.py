"""Tuning a model's settings to annotated faces, by gradient descent through the fit.

python examples/05_tune.py [DATA] [OUT.safetensors]

DATA is as for `jclnf tune`: a folder with .pts files, a CSV file, or dlib's XML. The command does
the same and keeps people apart by itself.
"""

import sys
from pathlib import Path

import numpy as np
import samples

import jclnf
from jclnf.train import TrainConfig, tune

data = sys.argv[1] if len(sys.argv) > 1 else samples.annotated(Path("annotated"))
out = sys.argv[2] if len(sys.argv) > 2 else "tuned.safetensors"

faces = jclnf.annotations.read_annotations(data)
learned, held_out = jclnf.annotations.split_by_identity(faces, 0.2, seed=0)


def arrays(faces):
    """Images, boxes and landmarks, as `tune` takes them."""
    images = [jclnf.images.read_image(face.image) for face in faces]
    boxes = np.stack([jclnf.evaluation.start_box(face) for face in faces])
    return images, boxes, np.stack([face.landmarks for face in faces])


tuned = tune(
    jclnf.load_model(),
    *arrays(learned),
    what="params",
    offset=True,  # these landmarks may mean something else by some points than the model does
    validation=arrays(held_out),
    config=TrainConfig(epochs=2, batch_size=2, learning_rate=1e-3),
    quiet=True,
)
for epoch in tuned.history:
    print(f"epoch {epoch['epoch']}: {epoch['validation']:.2f} % of the eye distance, held out")
print(f"kept: epoch {tuned.epoch}; kernel widths {np.asarray(tuned.params.kernel_width)}")
jclnf.save_model(tuned.model, out)
