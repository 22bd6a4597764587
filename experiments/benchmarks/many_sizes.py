"""A hundred images of a hundred sizes, one after the other: compilations, and time of a fit.

    python -m experiments.benchmarks.many_sizes

Faces of 40 to 1,000 px in images that are three times as large, made by scaling a photograph that
comes with Matplotlib; the bundled model. A fit is timed with cropping, from the call until
its landmarks are on the host.
"""

import time
from pathlib import Path

import cv2
import jax
import numpy as np
from matplotlib import cbook

import jclnf
from experiments.common import Row, command_line, pivot, write_results
from jclnf.images import crop, read_image

FOLDER = Path(__file__).resolve().parent / "many_sizes"
BOX = np.array([180.0, 170.0, 170.0, 165.0])
"""The face in the photograph, tight from the eyebrows to the chin."""
SIDES = np.random.default_rng(0).permutation(np.geomspace(40, 1000, 100))
ROUNDS = 3


def examples() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and boxes."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        grey = read_image(file.name)
    found = []
    for side in SIDES:
        factor = side / BOX[2:].mean()
        found.append((cv2.resize(grey, None, fx=factor, fy=factor), factor * BOX))
    return found


def main() -> None:
    command_line(__doc__).parse_args()
    compiled: list[float] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    model, cases = jclnf.load_model(), examples()
    # What has nothing to do with the size of images, such as the conversion of boxes.
    jclnf.warm_up(model, 10)
    jax.block_until_ready(jax.tree.leaves(model))
    jax.monitoring.register_event_duration_secs_listener(listen)
    sizes = [len(crop(*case).image) for case in cases]
    fits, seconds, programs = [], np.zeros((ROUNDS, len(cases))), []
    for number in range(ROUNDS):
        compiled.clear()
        for i, (image, box) in enumerate(cases):
            start = time.perf_counter()
            result = jclnf.fit(model, image, box)
            np.asarray(result.landmarks)
            seconds[number, i] = time.perf_counter() - start
            fits.append(result)
        programs.append(len(compiled))
    times = 1e3 * seconds[1:].min(0)
    rows = [
        Row(
            "programs compiled in the first round", "all", len(cases), programs[0], len(set(sizes))
        ),
        Row("programs compiled afterwards", "all", len(cases), sum(programs[1:]), 0),
        Row(
            "fits of success",
            "all",
            len(cases),
            sum(bool(fit.success) for fit in fits[: len(cases)]),
        ),
        Row("time of a fit, mean", "all", len(cases), times.mean(), 20, unit="ms"),
    ]
    for size in sorted(set(sizes)):
        chosen = times[np.array(sizes) == size]
        at = f"crops of {size} px", len(chosen)
        rows.append(Row("time of a fit, mean", *at, chosen.mean(), unit="ms"))
        rows.append(Row("time of a fit, longest", *at, chosen.max(), unit="ms"))
    FOLDER.mkdir(exist_ok=True)
    title = "A hundred images of a hundred sizes"
    write_results(FOLDER, title, pivot(rows), {"rows": rows})


if __name__ == "__main__":
    main()
