"""How far landmarks may be off: calibrates a model's covariances, and checks them on other people.

    python -m experiments.uncertainty [--store]

On the validation split, from its boxes. The people fall into two halves: the four numbers of
`fitting/_uncertainty.py` are fitted on one, and the other says whether the 50, 90 and 95 % ellipses
hold as many of the truths; then the other way round. `--store` writes the numbers fitted on all of
them into the bundled model.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import REPOSITORY, command_line, table, validation, write_results
from jclnf.fitting import crops_of_one_size
from jclnf.images import read_image
from jclnf.train._uncertainty import Measured, calibrated, limit, mahalanobis, with_pairs

HERE = Path(__file__).resolve().parent

SHARES = (0.5, 0.9, 0.95)
GROUPS = {
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "mouth": slice(48, 68),
}


def measured(
    model: jclnf.Model, crops: list[jclnf.images.Crop]
) -> tuple[jclnf.FitResult, jax.Array]:
    """The fits of all faces in their images, and the covariances of `Measured`."""
    images = jnp.stack([jnp.asarray(crop.image) for crop in crops])
    boxes = jnp.stack([jnp.asarray(crop.box) for crop in crops])
    each = jax.jit(lambda faces: jax.lax.map(lambda face: with_pairs(model, *face), faces))
    found, covariances = each((images, boxes))
    offsets = jnp.stack([jnp.asarray(crop.offset) for crop in crops])
    return jax.vmap(jclnf.FitResult.shifted)(found, offsets), jnp.moveaxis(covariances, 1, 0)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--store", action="store_true", help="put it into the bundled model")
    args = parser.parse_args()
    model = jclnf.load_model()
    val, boxes = validation()
    crops = crops_of_one_size([read_image(face.image) for face in val], boxes)
    truth = np.stack([face.landmarks for face in val])
    found, covariances = measured(model, crops)
    faces = Measured(
        covariances, found.pose.scale, jnp.asarray(truth - np.asarray(found.landmarks), jnp.float32)
    )
    people = np.array([face.identity for face in val])
    names = np.unique(people)
    first = np.isin(people, names[::2])
    held = {share: np.zeros(truth.shape[:2], bool) for share in SHARES}
    distances = np.zeros(truth.shape[:2])
    deviations = np.zeros(truth.shape[:2])
    settings = {}
    for name, learned, tried in (("first", first, ~first), ("second", ~first, first)):
        pair, by = calibrated(faces.of(learned))
        settings[name] = [float(x) for x in jax.tree.leaves(by)]
        other = faces.of(tried)
        covariance = other.covariance(pair, by.inflation, by.residual)
        distances[tried] = np.asarray(mahalanobis(covariance, other.errors))
        traces = np.trace(np.asarray(covariance), axis1=-2, axis2=-1)
        deviations[tried] = np.sqrt(traces)
    for share in SHARES:
        held[share] = distances < limit(share)
    _, by = calibrated(faces)
    settings["both"] = [float(x) for x in jax.tree.leaves(by)]
    eye = np.linalg.norm(truth[:, 36] - truth[:, 45], axis=-1)[:, None]
    errors = np.linalg.norm(np.asarray(faces.errors), axis=-1) / eye * 100
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
    body = (
        f"{len(val)} validation faces. The numbers were fitted on half of the people and tried on "
        f"the other half, both ways. Share of landmarks that the ellipse holds; distances in % of "
        f"the eye distance.\n\n{table(head, rows)}\n\n"
        f"Rank correlation of a face's expected and actual mean error: {rank:.2f}. The tenth of "
        f"the faces that is expected to be worst has a mean error of {errors[worst].mean():.2f} %, "
        f"the tenth expected to be best {errors[best].mean():.2f} %.\n\n"
        "Calibration (inflation, residual, spread, floor): "
        + "; ".join(f"{k} {', '.join(f'{x:.3g}' for x in v)}" for k, v in settings.items())
        + "."
    )
    write_results(HERE, "How far landmarks may be off", body, {"rows": rows, "settings": settings})
    if args.store:
        file = REPOSITORY / "models" / "default.safetensors"
        jclnf.save_model(dataclasses.replace(model, uncertainty=by), file)
        print("stored in", file)


if __name__ == "__main__":
    main()
