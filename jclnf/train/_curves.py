"""Training curves: the loss and the validation figure of each stage, as a table and as an image."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jclnf.outputs import write_bytes
from jclnf.train._loop import History


def write_curves(path: Path, stages: Mapping[str, History]) -> None:
    """Write the histories of stages as CSV: stage, epoch, loss, validation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["stage", "epoch", "loss", "validation"])
    for stage, history in stages.items():
        for line in history:
            figures = (f"{line[name]:.4f}" for name in ("loss", "validation"))
            writer.writerow([stage, int(line["epoch"]), *figures])
    write_bytes(path, text.getvalue().encode())


def draw_training_curves(source: Path, path: Path) -> None:
    """Draw what `write_curves` has written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    stages: dict[str, list[tuple[int, float, float]]] = {}
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            line = int(row["epoch"]), float(row["loss"]), float(row["validation"])
            stages.setdefault(row["stage"], []).append(line)
    figure = Figure(figsize=(3.2 * len(stages), 3), layout="constrained")
    all_axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, (stage, lines) in zip(all_axes, stages.items(), strict=True):
        epochs, losses, validation = np.array(lines).T
        axes.plot(epochs, losses, label="training")
        axes.plot(epochs, validation, label="validation")
        axes.set(title=stage, xlabel="epoch")
        # The first epochs would hide what follows.
        low, high = np.nanpercentile([losses, validation], [0, 90])
        axes.set_ylim(0.95 * low, 1.1 * high)
    all_axes[0].legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    write_bytes(path, data.getvalue())
