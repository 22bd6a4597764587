"""Fits a second by the size of a batch, and what a fit costs by its settings.

    python -m experiments.benchmarks.throughput        (three minutes; on an idle machine)

Batches: `jclnf.fit_images`, cropping included, on as many host devices as there are cores, of
OpenFace's general model (frontal start) and the bundled one. Settings: single fits of OpenFace's
model with other numbers of iterations, with windows of other sides at its first scale alone, and
of its first landmarks alone; those of a kind in turns.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib

import jclnf
from experiments.common import command_line, faces, model_file, table, write_results
from experiments.timing import timed
from jclnf.openface import FRONTAL
from jclnf.runtime import use_all_cores

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().with_suffix("")
FACES, ROUNDS = 32, 9
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
ITERATIONS = (1, 2, 5, 10, 20)
WINDOWS = (3, 5, 7, 9, 11, 15)
LANDMARKS = (10, 20, 40, 68)


def medians(works: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Seconds of each, in turns, after each was done once."""
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            taken = timed(work)
            if turn:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def batches(model: jclnf.Model, cases: list[Any], init: Any) -> dict[int, float]:
    """Fits a second by the size of a batch."""

    def work(count: int) -> Callable[[], Any]:
        images, boxes = zip(*(cases[i % len(cases)] for i in range(count)), strict=True)
        return lambda: jclnf.fit_images(model, images, boxes, init=init)

    return {count: count / medians({count: work(count)})[count] for count in BATCHES}


def first_landmarks(model: jclnf.Model, count: int) -> jclnf.Model:
    """The model of its first landmarks alone."""
    pdm = jax.tree.map(lambda leaf: leaf[:count] if len(leaf) == 68 else leaf, model.pdm)
    experts = jax.tree.map(
        lambda leaf: leaf[:, :, :count] if leaf.ndim > 2 and leaf.shape[2] == 68 else leaf,
        model.experts,
    )
    return jclnf.Model(pdm, experts, model.defaults, name=f"first {count}")


def settings(model: jclnf.Model, cases: list[Any]) -> dict[str, dict[int, float]]:
    """Milliseconds of a fit by what is changed, and its value."""
    known = model.defaults

    def work(model: jclnf.Model, params: jclnf.FitParams) -> Callable[[], Any]:
        return lambda: [jclnf.fit(model, *case, params, init=FRONTAL) for case in cases]

    one_scale = {w: known.replace(windows=(w, 0, 0)) for w in WINDOWS}
    changed = {
        "iterations": {n: work(model, known.replace(iterations=n)) for n in ITERATIONS},
        "window": {w: work(model, params) for w, params in one_scale.items()},
        "landmarks": {n: work(first_landmarks(model, n), known) for n in LANDMARKS},
    }
    return {
        what: {value: 1e3 * taken / len(cases) for value, taken in medians(works).items()}
        for what, works in changed.items()
    }


def draw(rates: dict[str, dict[int, float]], costs: dict[str, dict[int, float]]) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    for name, by_count in rates.items():
        axes[0].plot(list(by_count), list(by_count.values()), "o-", label=name)
    axes[0].set(xscale="log", xlabel="faces in a batch", ylabel="fits a second", ylim=(0, None))
    axes[0].legend()
    names = {"iterations": "iterations a pass", "window": "side of the one window"}
    for axis, (what, by_value) in zip(axes[1:], costs.items(), strict=True):
        axis.plot(list(by_value), list(by_value.values()), "o-")
        axis.set(xlabel=names.get(what, what), ylabel="ms a fit", ylim=(0, None), xlim=(0, None))
    figure.savefig(HERE / "throughput.png", dpi=90)


def main() -> None:
    command_line(__doc__).parse_args()
    use_all_cores(64)
    cases = [(face.image, face.box) for face in faces(f"{i:03d}" for i in range(FACES))]
    general = jclnf.load_openface(model_file("general"))
    rates = {
        "OpenFace's model": batches(general, cases, FRONTAL),
        "bundled default": batches(jclnf.load_model(), cases, None),
    }
    costs = settings(general, [case for case in cases if len(jclnf.crop(*case).image) == 256][:8])
    HERE.mkdir(exist_ok=True)
    draw(rates, costs)
    body = f"{jax.local_device_count()} devices of the host; medians of {ROUNDS}.\n\n" + table(
        ["fits a second, faces in a batch", *map(str, BATCHES)],
        [[name, *(f"{rate:.0f}" for rate in by.values())] for name, by in rates.items()],
    )
    for what, by_value in costs.items():
        heads = [f"ms a fit of OpenFace's model by {what}", *map(str, by_value)]
        body += "\n\n" + table(heads, [["", *(f"{ms:.2f}" for ms in by_value.values())]])
    numbers = {"fits a second": rates, "ms a fit": costs}
    write_results(HERE, "Throughput and cost of fits on a CPU", body, numbers)


if __name__ == "__main__":
    main()
