"""The course of a training as a picture."""

import csv
from pathlib import Path


def draw_course(source: Path, picture: Path) -> None:
    """Draw the loss and the held-out figure of each stage over its epochs.

    Args:
        source: `course.csv` of a training, with the columns stage, epoch, loss, held_out.
        picture: file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    stages: dict[str, list[tuple[int, float, float]]] = {}
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            line = int(row["epoch"]), float(row["loss"]), float(row["held_out"])
            stages.setdefault(row["stage"], []).append(line)
    figure = Figure(figsize=(3.2 * len(stages), 3), layout="constrained")
    all_axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, (stage, lines) in zip(all_axes, stages.items(), strict=True):
        epochs, losses, held_out = zip(*lines, strict=True)
        axes.plot(epochs, losses, label="training")
        axes.plot(epochs, held_out, label="held out")
        axes.set(title=stage, xlabel="epoch")
        # The first epochs would hide what follows.
        values = sorted([*losses, *held_out])
        axes.set_ylim(0.95 * values[0], 1.1 * values[int(0.9 * (len(values) - 1))])
    all_axes[0].legend()
    figure.savefig(picture, dpi=90)
