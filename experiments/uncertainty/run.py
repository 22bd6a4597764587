"""How far landmarks may be off: calibrates a model's covariances, and checks them on other people.

    python experiments/uncertainty/run.py [--store]

On the validation split, from its boxes. The people fall into two halves: the four numbers of
`jclnf.uncertainty` are fitted on one, and the other says whether the 50, 90 and 95 % ellipses hold
as many of the truths; then the other way round. `--store` writes the numbers fitted on all of them
into the bundled model.
"""

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from common import DATA, REPOSITORY, table, write_results  # noqa: E402

import jclnf  # noqa: E402
from jclnf.batch import crops_of_one_size  # noqa: E402
from jclnf.images import read_image  # noqa: E402
from jclnf.uncertainty import Uncertainty  # noqa: E402

SPREADS, FLOORS = (1.0, 2.0, 4.0, 8.0, 16.0), (0.005, 0.02, 0.08, 0.3, 1.2)
"""Values of two of the numbers that are tried."""
SHARES = (0.5, 0.9, 0.95)
FREEDOM = 4.0
"""Degrees of freedom of the Student distribution that is fitted: few faces are far off."""
GROUPS = {
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "mouth": slice(48, 68),
}


def fits_of(model: jclnf.Model, pieces: list[jclnf.Crop]) -> tuple[jclnf.FitResult, jax.Array]:
    """The fits of all faces, and their covariances for each pair of `SPREADS` and `FLOORS` with
    inflation 1 and residual 0, `(p, b, n, 2, 2)`: the others enter linearly."""
    params = model.defaults.replace(uncertainty=True)
    pairs = jnp.array([(c, d) for c in SPREADS for d in FLOORS])

    @jax.jit
    def fits(images: jax.Array, boxes: jax.Array) -> tuple[jclnf.FitResult, jax.Array]:
        def one(face: tuple[jax.Array, jax.Array]) -> tuple[jclnf.FitResult, jax.Array]:
            def with_pair(pair: jax.Array) -> jclnf.FitResult:
                by = Uncertainty(jnp.ones(()), jnp.zeros(()), *pair)
                return jclnf.fit(dataclasses.replace(model, uncertainty=by), *face, params)

            several = jax.vmap(with_pair)(pairs)
            return jax.tree.map(lambda array: array[0], several), several.covariance

        return jax.lax.map(one, (images, boxes))

    images = jnp.stack([jnp.asarray(piece.image) for piece in pieces])
    found, covariances = fits(images, jnp.stack([jnp.asarray(piece.box) for piece in pieces]))
    offsets = jnp.stack([jnp.asarray(piece.offset) for piece in pieces])
    return jax.vmap(jclnf.FitResult.shifted)(found, offsets), jnp.moveaxis(covariances, 1, 0)


def likelihood(covariance: Any, errors: Any) -> Any:
    """Log density of Student's distribution with these covariances, for each landmark."""
    determinant = covariance[..., 0, 0] * covariance[..., 1, 1] - covariance[..., 0, 1] ** 2
    squared = mahalanobis(covariance, errors)
    return -0.5 * jnp.log(determinant) - (FREEDOM + 2) / 2 * jnp.log1p(squared / FREEDOM)


def mahalanobis(covariance: Any, errors: Any) -> Any:
    """Squared distance in standard deviations."""
    (a, b), (_, d) = (jnp.moveaxis(covariance[..., i, :], -1, 0) for i in range(2))
    x, y = errors[..., 0], errors[..., 1]
    return (d * x**2 - 2 * b * x * y + a * y**2) / (a * d - b**2)


class Faces(NamedTuple):
    """What the numbers are fitted on."""

    covariances: jax.Array
    scales: jax.Array
    errors: jax.Array

    def of(self, chosen: np.ndarray) -> "Faces":
        return Faces(self.covariances[:, chosen], self.scales[chosen], self.errors[chosen])

    def covariance(self, pair: Any, inflation: Any, residual: Any) -> jax.Array:
        unit = jnp.eye(2) * self.scales[:, None, None, None] ** 2
        return inflation * self.covariances[pair] + residual * unit


def calibrated(faces: Faces) -> tuple[int, Uncertainty]:
    """The four numbers of greatest likelihood, then sized so that 90 % ellipses hold 90 %."""
    optimiser = optax.adam(0.1)

    def best(pair: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(logs: jax.Array) -> jax.Array:
            return -likelihood(faces.covariance(pair, *jnp.exp(logs)), faces.errors).mean()

        def step(carry: Any, _: None) -> tuple[Any, None]:
            logs, state = carry
            moves, state = optimiser.update(jax.grad(loss)(logs), state)
            return (optax.apply_updates(logs, moves), state), None

        logs = jnp.zeros(2)
        (logs, _), _ = jax.lax.scan(step, (logs, optimiser.init(logs)), None, length=120)
        return loss(logs), jnp.exp(logs)

    losses, numbers = jax.jit(lambda: jax.lax.map(best, jnp.arange(len(faces.covariances))))()
    pair = int(jnp.argmin(losses))
    inflation, residual = numbers[pair]
    # Sized by the 90th percentile of the distances, over that of a Gaussian.
    distances = np.asarray(mahalanobis(faces.covariance(pair, inflation, residual), faces.errors))
    factor = float(np.quantile(distances, 0.9)) / limit(0.9)
    spread, floor = SPREADS[pair // len(FLOORS)], FLOORS[pair % len(FLOORS)]
    numbers = (factor * inflation, factor * residual, spread, floor)
    return pair, Uncertainty(*(jnp.float32(x) for x in numbers))


def limit(share: float) -> float:
    """Squared distance within which a Gaussian in the plane has this share."""
    return float(-2 * np.log(1 - share))


def main() -> None:
    model = jclnf.load_model()
    with open(DATA / "faces" / "val_boxes.csv", newline="") as f:
        boxes = {row["image"]: [float(row[side]) for side in "xywh"] for row in csv.DictReader(f)}
    val = jclnf.read_annotations(DATA / "faces" / "landmarks.csv", split="val")
    pieces = crops_of_one_size(
        [read_image(face.image) for face in val], [boxes[face.image.name] for face in val]
    )
    truth = np.stack([face.landmarks for face in val])
    found, covariances = fits_of(model, pieces)
    faces = Faces(
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
    if "--store" in sys.argv[1:]:
        file = REPOSITORY / "models" / "default.safetensors"
        jclnf.save_model(dataclasses.replace(model, uncertainty=by), file)
        print("stored in", file)


if __name__ == "__main__":
    main()
