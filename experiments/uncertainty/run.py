"""How far landmarks may be off: checks the covariances of the bundled model on people it never saw.

    python experiments/uncertainty/run.py

On the validation split, from its boxes: do the 50, 90 and 95 % ellipses hold as many of the truths?
"""

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import jax  # noqa: E402
import numpy as np  # noqa: E402
from common import DATA, table, write_results  # noqa: E402

import jclnf  # noqa: E402
from jclnf.images import read_image  # noqa: E402
from jclnf.runtime import use_all_cores  # noqa: E402
from jclnf.train.uncertainty import limit, mahalanobis  # noqa: E402

SHARES = (0.5, 0.9, 0.95)
GROUPS = {
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "mouth": slice(48, 68),
}


CHUNK = 33


def fits(model: jclnf.Model, faces: list[jclnf.AnnotatedFace], boxes: np.ndarray) -> Any:
    """The fits of all faces, with covariances."""
    params = model.defaults.replace(uncertainty=True)
    parts = []
    for first in range(0, len(faces), CHUNK):
        part = slice(first, first + CHUNK)
        images = [read_image(face.image) for face in faces[part]]
        found = jclnf.fit_batch(model, images, boxes[part], params)
        parts.append(dataclasses.replace(found, trace=None))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def main() -> None:
    use_all_cores(8)
    jclnf.enable_compilation_cache()
    model = jclnf.load_model()
    with open(DATA / "faces" / "val_boxes.csv", newline="") as f:
        boxes = {row["image"]: [float(row[side]) for side in "xywh"] for row in csv.DictReader(f)}
    val = jclnf.read_annotations(DATA / "faces" / "landmarks.csv", split="val")
    found = fits(model, val, np.array([boxes[face.image.name] for face in val]))
    truth = np.stack([face.landmarks for face in val])
    off = truth - found.landmarks
    distances = np.asarray(mahalanobis(found.covariance, off))
    deviations = np.sqrt(np.trace(found.covariance, axis1=-2, axis2=-1))
    held = {}
    for share in SHARES:
        held[share] = distances < limit(share)
    eye = np.linalg.norm(truth[:, 36] - truth[:, 45], axis=-1)[:, None]
    errors = np.linalg.norm(off, axis=-1) / eye * 100
    predicted = deviations / eye * 100
    rows = [
        [name, *(f"{100 * held[share][:, part].mean():.1f} %" for share in SHARES)]
        + [f"{np.sqrt((predicted[:, part] ** 2).mean()):.2f}"]
        + [f"{np.sqrt((errors[:, part] ** 2).mean()):.2f}"]
        for name, part in (GROUPS | {"all": slice(None)}).items()
    ]
    yaw = np.abs(np.rad2deg(np.asarray(jax.vmap(lambda pose: pose.rotation)(found.pose))[:, 1]))
    for name, chosen in (
        ("yaw under 15", yaw < 15),
        ("15 to 30", (yaw >= 15) & (yaw < 30)),
        ("over 30", yaw >= 30),
    ):
        rows.append(
            [f"{name} degrees", *(f"{100 * held[share][chosen].mean():.1f} %" for share in SHARES)]
            + [f"{np.sqrt((predicted[chosen] ** 2).mean()):.2f}"]
            + [f"{np.sqrt((errors[chosen] ** 2).mean()):.2f}"]
        )
    order = np.argsort(predicted.mean(1))
    worst, best = order[-len(order) // 10 :], order[: len(order) // 10]
    rank = np.corrcoef(*(np.argsort(np.argsort(x.mean(1))) for x in (predicted, errors)))[0, 1]
    head = ["", *(f"within {100 * share:g} %" for share in SHARES), "expected, RMS", "actual, RMS"]
    numbers = [float(x) for x in jax.tree.leaves(model.uncertainty)]
    body = (
        f"{len(val)} validation faces. Share of landmarks that the ellipse holds; distances in % "
        f"of the eye distance.\n\n{table(head, rows)}\n\n"
        f"Rank correlation of a face's expected and actual mean error: {rank:.2f}. The tenth of "
        f"the faces that is expected to be worst has a mean error of {errors[worst].mean():.2f} %, "
        f"the tenth expected to be best {errors[best].mean():.2f} %.\n\n"
        "Calibration (inflation, residual, spread, floor): "
        f"{', '.join(f'{number:.3g}' for number in numbers)}."
    )
    write_results(HERE, "How far landmarks may be off", body, {"rows": rows, "settings": numbers})


if __name__ == "__main__":
    main()
