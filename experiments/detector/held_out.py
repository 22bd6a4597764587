"""How good weights are on crops of the held-out images, after each epoch."""

import jax
import numpy as np

from experiments.detector.loss import FACE
from experiments.training.trunk.augment import Example
from jclnf.detect._mtcnn import suppress
from jclnf.detect._network import boxes_of, look
from jclnf.experts import plain_layer
from jclnf.tracking import overlap

BATCH = 32
LEAST = 0.3
"""Overlap of boxes above which the less likely one is dropped."""


def measures(
    weights: dict[str, jax.Array], crops: list[Example], score: float = 0.5
) -> dict[str, float]:
    """Of faces with an overlap over 0.4 the share and their mean overlap; and false detections a
    crop, and of the empty crops those with one, in %."""
    side = len(crops[0].image)

    @jax.jit
    def seen(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return boxes_of(look(images, plain_layer(weights)), side, side)

    hits, shared, false, empty = [], [], 0, []
    sizes = []
    for start in range(0, len(crops), BATCH):
        some = crops[start : start + BATCH]
        logits, boxes = (np.asarray(a) for a in seen(np.stack([crop.image for crop in some])))
        for crop, logit, box in zip(some, logits, boxes, strict=True):
            likely = logit > np.log(score / (1 - score))
            found = corners(box[likely])
            found = found[suppress(found, logit[likely], LEAST)]
            labels = crop.points[crop.points[:, 4] > 0]
            known = corners(labels[:, :4])
            for own, label in zip(known, labels, strict=True):
                if label[4] == FACE and label[5] == 1:
                    best = max((overlap(own, f) for f in found), default=0.0)
                    hits.append(best > 0.4)
                    sizes.append(np.sqrt(own[2] * own[3]))
                    shared += [best] if best > 0.4 else []
            wrong = sum(all(overlap(f, own) < 0.2 for own in known) for f in found)
            false += wrong
            if not (labels[:, 4] == FACE).any():
                empty.append(wrong > 0)
    hit, size = np.array(hits), np.array(sizes)
    return {
        "recall": float(hit.mean()),
        "under 24 px": float(hit[size < 24].mean()),
        "iou": float(np.mean(shared)) if shared else 0.0,
        "false": false / len(crops),
        "empty": 100 * float(np.mean(empty)),
    }


def corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes as x, y of the corner, w, h; of x, y of the centre, w, h."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
