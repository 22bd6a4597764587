"""What each step of `jclnf train` brings, on the validation split.

    jclnf train shared/faces/landmarks.csv --split train --out MODEL.safetensors
    python -m experiments.training.steps MODEL.safetensors [CCNF_EPOCHS]

The training's folder, MODEL.safetensors.training, is still needed. CCNF experts are trained here,
by gradient descent, for as many epochs (default: 3), and put in the place of the trunk. Nothing is
chosen by these figures.
"""

import dataclasses
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import annotated, command_line, table, validation, write_results
from experiments.training.ccnf import experts_of, train_ccnf
from jclnf.images import read_image
from jclnf.train import MIRROR_68, Faces, ShapeModel, TrainConfig, cut_out
from jclnf.train._examples import COARSE, FINE
from jclnf.train._faces import Posed

HERE = Path(__file__).resolve().parent

CCNF_SCALINGS, CCNF_WINDOWS = (0.25, 0.35, 0.5), (11, 9, 7)
"""Reference pixels per millimetre and windows, as OpenFace's CCNF experts have them."""


def training_faces() -> Faces:
    """Those of the training split."""
    crops = [cut_out(read_image(face.image), face.landmarks) for face in annotated("train")]
    images, points = zip(*crops, strict=True)
    return Faces(list(images), np.array(points))


def with_ccnf(model: jclnf.Model, faces: Faces, folder: Path, epochs: int) -> jclnf.Model:
    """The model with CCNF experts trained by gradient descent in place of its trunk."""
    posed = Posed.of(faces.with_mirrored(MIRROR_68), ShapeModel.of(model.pdm, 1.4))
    scales = [
        train_ccnf(
            posed,
            scaling,
            window,
            FINE if scale else COARSE,
            TrainConfig(epochs, batch_size=16, learning_rate=2e-2),
            checkpoint=folder / f"ccnf{scale}_{epochs}.eqx",
        )
        for scale, (scaling, window) in enumerate(zip(CCNF_SCALINGS, CCNF_WINDOWS, strict=True))
    ]
    experts = experts_of(scales, CCNF_SCALINGS, CCNF_WINDOWS)
    s = len(scales)
    settings = jclnf.FitParams(jnp.full(s, 5.0), jnp.full(s, 1.5), jnp.zeros(s), CCNF_WINDOWS)
    return dataclasses.replace(model, experts=experts, defaults=settings)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("epochs", type=int, nargs="?", default=3, help="of the CCNF experts")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    folder = args.model.with_name(f"{args.model.name}.training")
    final = jclnf.load_model(args.model)
    before = jclnf.load_model(folder / "before_fit.safetensors")
    val, boxes = validation()

    def settings(model: jclnf.Model, **changes: object) -> jclnf.Model:
        return dataclasses.replace(model, defaults=model.defaults.replace(**changes))

    nowhere = jnp.full_like(before.defaults.weight_factor, 1e-6)
    steps = {
        "learned start alone": settings(before, weight_factor=nowhere, regularisation=1 / nowhere),
        f"+ CCNF experts by gradient descent, {args.epochs} epochs": with_ccnf(
            before, training_faces(), folder, args.epochs
        ),
        "+ trunk": before,
        "+ training through the fit": dataclasses.replace(final, readout=None),
        "+ readout": final,
        "the same, three iterations": settings(final, iterations=3),
        "the same, from 11 rotations": final,
        "the bundled model, learned from photographs": jclnf.load_model(),
    }
    lines = []
    for name, model in steps.items():
        several = jclnf.openface.ROTATIONS if name.endswith("rotations") else None
        found = jclnf.evaluation.evaluate(model, val, boxes=boxes, init=several)
        summary = found.summary()
        all68, inner = summary.measures["all_eye"], summary.measures["inner_eye"]
        lines.append(
            [
                name,
                *(f"{v:.2f}" for v in (all68.mean, all68.median, all68.p90)),
                f"{100 * all68.over_10:.1f} %",
                f"{inner.mean:.2f}",
            ]
        )
        print(*lines[-1], flush=True)
    head = ["step", "mean", "median", "90 %", "over 10 %", "inner 51: mean"]
    body = (
        f"{len(val)} faces of people who are not in the training. Errors in % of the outer eye "
        f"distance.\n\n{table(head, lines)}\n\nSettings that were learned: regularisation "
        f"{_text(final.defaults.regularisation)} (it began at "
        f"{_text(before.defaults.regularisation)}), kernel width "
        f"{_text(final.defaults.kernel_width)} cells ({_text(before.defaults.kernel_width)}), "
        f"softness {_text(final.experts.softness)} square cells "
        f"({_text(before.experts.softness)})."
    )
    write_results(HERE, "What each step of the training brought", body, {"steps": lines})


def _text(values: object) -> str:
    return " and ".join(f"{v:.2f}" for v in np.asarray(values))


if __name__ == "__main__":
    main()
