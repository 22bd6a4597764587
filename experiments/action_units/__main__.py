"""Action units: how far exact arithmetic is from OpenFace's, what landmarks that are off do, cost.

That OpenFace's arithmetic is OpenFace's, stage by stage and for whole clips, tests show
(`tests/test_action_units.py`). Needs `openface/` of the development data, with its predictors and
recordings of action units.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import OPENFACE, command_line, table, write_results
from jclnf.action_units import (
    ActionUnits,
    Person,
    describe,
    describe_openface,
    load_action_units,
)

HERE = Path(__file__).resolve().parent
RECORDED = OPENFACE / "au"
BATCH = 32
SIDE = 400
"""Of the crops that faces are described in by exact arithmetic, pixels."""


def stages(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Image, and landmarks in it, of each recorded face that has an image."""
    data = np.load(RECORDED / f"stages_{name}.npz")
    found = []
    for i, points in enumerate(data["landmarks"]):
        crop, origin = data[f"crop_{i:03d}"], data[f"crop_origin_{i:03d}"]
        if max(crop.shape[:2]) > SIDE:
            continue
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[: len(crop), : crop.shape[1]] = crop
        landmarks = (points.reshape(2, -1).T - origin).astype(np.float32)
        found.append((image, landmarks))
    return found


def exact_differences(model: ActionUnits) -> dict[str, np.ndarray]:
    """By how much outputs of exact arithmetic differ from those of OpenFace's, for each face."""
    exactly = jax.jit(functools.partial(describe, model))
    rows = []
    for image, landmarks in stages("dyn_default"):
        other = describe_openface(model, image, landmarks).descriptor
        one = np.asarray(exactly(image, landmarks), np.float64)
        rows.append(np.abs(model.predict(one) - model.predict(other)))
    return dict(zip(model.columns, np.array(rows).T, strict=True))


def sensitivity(model: ActionUnits, pixels: float) -> np.ndarray:
    """By how much outputs move if all landmarks are off by so much."""
    rng, rows = np.random.default_rng(0), []
    for image, landmarks in stages("dyn_default"):
        moved = landmarks + rng.normal(0, pixels, landmarks.shape).astype(np.float32)
        both = (describe_openface(model, image, points).descriptor for points in (landmarks, moved))
        one, other = map(model.predict, both)
        rows.append(np.abs(one - other)[: len(model.intensities)])
    return np.array(rows)


def milliseconds(function: Callable[[], Any], repeat: int = 60) -> float:
    """The quickest of several calls."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def costs(model: ActionUnits) -> dict[str, float]:
    """Milliseconds a face."""
    image, landmarks = stages("dyn_default")[0]
    person, frame = Person(model), describe_openface(model, image, landmarks).descriptor
    rng = np.random.default_rng(0)
    for _ in range(100):
        person.step(frame + rng.normal(0, 0.02, frame.shape))
    images, faces = jnp.stack([jnp.asarray(image)] * BATCH), jnp.stack([landmarks] * BATCH)
    together = jax.jit(jax.vmap(functools.partial(describe, model)))
    pair = milliseconds(lambda: (person.step(frame), person.step(frame)))
    return {
        "described in OpenFace's arithmetic": milliseconds(
            lambda: describe_openface(model, image, landmarks).descriptor
        ),
        "medians and predictions": pair / 2,
        f"described exactly, in batches of {BATCH}": milliseconds(
            lambda: together(images, faces).block_until_ready(), 10
        )
        / BATCH,
    }


def main() -> None:
    """Measure, and write the results."""
    command_line(str(__doc__)).parse_args()
    static = load_action_units(OPENFACE / "AU_predictors", static=True)
    apart = {n: d for n, d in exact_differences(static).items() if n.endswith("_r")}
    moved = {pixels: sensitivity(static, pixels) for pixels in (0.001, 0.01, 0.1)}
    cost = costs(load_action_units(OPENFACE / "AU_predictors"))
    rows = [[name, f"{np.median(d):.3f}", f"{d.max():.3f}"] for name, d in apart.items()]
    exact = table(["exact arithmetic, from OpenFace's", "median", "largest"], rows)
    rows = [[f"{px} px", f"{np.median(d):.3f}", f"{d.max():.3f}"] for px, d in moved.items()]
    off = table(["landmarks off by", "median", "largest"], rows)
    rows = [[name, f"{number:.2f}"] for name, number in cost.items()]
    body = "\n\n".join([exact, off, table(["ms a face", "quickest"], rows)])
    numbers = {"exact": apart, "moved": moved, "ms": cost}
    write_results(HERE, "Action units: raw intensities, and cost", body, numbers)


if __name__ == "__main__":
    main()
