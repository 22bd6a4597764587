"""Does tuning by gradients help? OpenFace's CLNF model, its settings and landmark weights.

    python -m experiments.tuning

Regularisation and kernel width of each scale, and a weight for each landmark, scale and view, are
tuned by `tune` on faces of the training split; a random search over regularisation, kernel
width and weight factor gets more than the same time. Both begin at OpenFace's settings. The figures
are on the validation split, from eleven starts. Needs the development data.
"""

import dataclasses
import time
from pathlib import Path

import jclnf
from experiments.common import (
    annotated,
    command_line,
    disturbed_box,
    model_file,
    table,
    validation,
    write_results,
)
from jclnf.runtime import use_all_cores
from jclnf.train import TrainConfig, tune

HERE = Path(__file__).resolve().parent

LEARNED, WATCHED, SEARCHED = 2000, 250, 160
"""Faces to learn from, to choose the epoch by, and to compare random settings on."""
CANDIDATES = 44
CONFIG = TrainConfig(epochs=6, batch_size=16, learning_rate=3e-3)


def main() -> None:
    command_line(__doc__).parse_args()
    use_all_cores(8)
    import jax.numpy as jnp
    import numpy as np

    jclnf.enable_compilation_cache()
    from jclnf.evaluation import Summary
    from jclnf.images import read_image

    rng = np.random.default_rng(0)
    people = jclnf.annotations.split_by_identity(annotated("train"), 0.2, 0)
    picked = [
        [part[i] for i in rng.permutation(len(part))[:count]]
        for part, count in zip(people, (LEARNED, WATCHED), strict=True)
    ]

    boxes = [[disturbed_box(face, rng) for face in part] for part in picked]
    learned, watched = (
        ([read_image(face.image) for face in part], at, [face.landmarks for face in part])
        for part, at in zip(picked, boxes, strict=True)
    )

    plain = jclnf.load_openface(model_file("general"))
    default = jclnf.FitParams.openface(plain, arithmetic="exact")
    default = default.replace(rotations=jclnf.openface.ROTATIONS)
    # Weights of 1, as OpenFace has them with a weight factor of 0, but free to move.
    ones = jnp.ones_like(plain.experts.confidence)
    model = dataclasses.replace(plain, experts=dataclasses.replace(plain.experts, confidence=ones))
    params = default.replace(weight_factor=jnp.ones_like(default.weight_factor))

    began = time.perf_counter()
    tuned = tune(
        model,
        *learned,
        params.replace(derivatives="rematerialised"),
        what="params",
        validation=watched,
        rotations=jclnf.openface.ROTATIONS,
        offset=True,
        config=CONFIG,
    )
    seconds = {"tuning": time.perf_counter() - began}
    print(tuned.history, flush=True)

    def corrected(summary: Summary) -> float:
        return summary.measures["all_eye_corrected"].mean

    def tried(settings: jclnf.FitParams) -> float:
        on = picked[0][:SEARCHED]
        found = jclnf.evaluation.evaluate(plain, on, settings, boxes=boxes[0][:SEARCHED])
        return corrected(found.summary())

    began = time.perf_counter()
    best, score = default, tried(default)
    for number in range(CANDIDATES):
        candidate = default.replace(
            regularisation=default.regularisation * np.exp(rng.uniform(-2.5, 1, 3)),
            kernel_width=default.kernel_width * np.exp(rng.uniform(-0.7, 0.7, 3)),
            weight_factor=jnp.full(3, float(rng.choice([0.0, rng.uniform(0.5, 5)]))),
        )
        error = tried(candidate)
        if error < score:
            best, score = candidate, error
            print(number, error, flush=True)
    seconds["random search"] = time.perf_counter() - began

    val, val_boxes = validation()
    lines, figures = [], {}
    for name, m, p in (
        ("OpenFace's settings", plain, default),
        ("random search", plain, best),
        ("tuned by gradients", tuned.model, tuned.params),
    ):
        found = jclnf.evaluation.evaluate(
            m,
            val,
            p,
            boxes=val_boxes,
        ).summary()
        measures = [found.measures[key] for key in ("all_eye", "all_eye_corrected")]
        figures[name] = [measures[1].mean, measures[1].median]
        lines.append([name, *(f"{v:.2f}" for s in measures for v in (s.mean, s.median))])
        print(lines[-1], flush=True)
    change = 100 * (figures["tuned by gradients"][0] / figures["OpenFace's settings"][0] - 1)

    def text(values: object) -> str:
        return ", ".join(f"{v:.2f}" for v in np.asarray(values))

    body = (
        f"{len(val)} validation faces, eleven starts, errors in % of the outer eye distance.\n\n"
        + table(["", "mean", "median", "offsets removed: mean", "median"], lines)
        + f"\n\nChange of the mean without offsets: {change:+.1f} % (asked: at most -5 %, "
        "and better than random search).\n\n"
        + table(
            ["", "regularisation", "kernel width", "weight factor"],
            [
                [name, text(p.regularisation), text(p.kernel_width), text(p.weight_factor)]
                for name, p in (
                    ("OpenFace", default),
                    ("random search", best),
                    ("gradients", tuned.params),
                )
            ],
        )
        + f"\n\nTuning took {seconds['tuning']:.0f} s ({LEARNED} faces, {CONFIG.epochs} epochs, "
        f"with compilation), the search {seconds['random search']:.0f} s ({CANDIDATES} settings on "
        f"{SEARCHED} faces). Held-out error of the epochs: "
        + ", ".join(f"{line['validation']:.2f}" for line in tuned.history)
        + "."
    )
    write_results(
        HERE,
        "OpenFace's settings, tuned by gradients",
        body,
        {"figures": figures, "seconds": seconds, "course": tuned.history},
    )


if __name__ == "__main__":
    main()
