"""Action units: how far exact arithmetic is from OpenFace's, what landmarks that are off do, cost.

That OpenFace's arithmetic is OpenFace's, stage by stage and for whole clips, tests show
(`tests/test_action_units.py`). Needs `openface/` of the development data, with its predictors and
recordings of action units.
"""

import functools
import os
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
    describe_batch,
    describe_openface,
    load_action_units,
)
from jclnf.runtime import use_all_cores

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


def exact_differences(model: ActionUnits, *, rounded: bool) -> dict[str, np.ndarray]:
    """By how much outputs of exact arithmetic differ from those of OpenFace's, for each face."""
    exactly = jax.jit(functools.partial(describe, model, rounded=rounded))
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


def milliseconds(function: Callable[[], Any], repeat: int = 60) -> np.ndarray:
    """The quickest of several calls, and the least of a processor's time in one."""
    function()
    times = []
    for _ in range(repeat):
        start, processor = time.perf_counter(), time.process_time()
        function()
        times.append((time.perf_counter() - start, time.process_time() - processor))
    return 1e3 * np.min(times, axis=0)


def costs(model: ActionUnits) -> dict[str, np.ndarray]:
    """Milliseconds a face, and of a processor."""
    image, landmarks = stages("dyn_default")[0]
    person, frame = Person(model), describe_openface(model, image, landmarks).descriptor
    rng = np.random.default_rng(0)
    for _ in range(100):
        person.step(frame + rng.normal(0, 0.02, frame.shape))
    images, faces = np.stack([image] * BATCH), np.stack([landmarks] * BATCH)
    exactly = jax.jit(functools.partial(describe, model))
    given = jnp.asarray(image), jnp.asarray(landmarks)
    pair = milliseconds(lambda: (person.step(frame), person.step(frame)))
    found = {
        "described in OpenFace's arithmetic": milliseconds(
            lambda: describe_openface(model, image, landmarks).descriptor
        ),
        "medians and predictions": pair / 2,
        "described exactly": milliseconds(lambda: exactly(*given).block_until_ready()),
    }
    for rounded in (False, True):
        together = milliseconds(
            functools.partial(describe_batch, model, images, faces, rounded=rounded), 10
        )
        label = " and rounded" if rounded else ""
        found[f"described exactly{label}, in batches of {BATCH}"] = together / BATCH
    return found


def main() -> None:
    """Measure, and write the results."""
    command_line(str(__doc__)).parse_args()
    load = os.getloadavg()[0]
    use_all_cores(BATCH)
    static = load_action_units(OPENFACE / "AU_predictors", static=True)
    apart = [
        {
            name: values
            for name, values in exact_differences(static, rounded=rounded).items()
            if name.endswith("_r")
        }
        for rounded in (False, True)
    ]
    moved = {pixels: sensitivity(static, pixels) for pixels in (0.001, 0.01, 0.1)}
    cost = costs(load_action_units(OPENFACE / "AU_predictors"))
    rows = [
        [name, *(f"{number(d[name]):.3f}" for d in apart for number in (np.median, np.max))]
        for name in apart[0]
    ]
    header = ["exact arithmetic, from OpenFace's", "median", "largest"]
    exact = table([*header, "rounded: median", "largest"], rows)
    rows = [[f"{px} px", f"{np.median(d):.3f}", f"{d.max():.3f}"] for px, d in moved.items()]
    off = table(["landmarks off by", "median", "largest"], rows)
    rows = [[name, *(f"{number:.2f}" for number in numbers)] for name, numbers in cost.items()]
    spent = table(["ms a face", "quickest", "of a processor"], rows)
    spent = f"Load before it began: {load:.1f}.\n\n{spent}"
    numbers = {"exact": apart[0], "rounded": apart[1], "moved": moved, "ms": cost, "load": load}
    write_results(
        HERE,
        "Action units: raw intensities, and cost",
        "\n\n".join([exact, off, spent]),
        numbers,
    )


if __name__ == "__main__":
    main()
