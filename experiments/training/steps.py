"""What each step of the training brought, on people held out of the training split.

    python experiments/training/steps.py FOLDER [CCNF_EPOCHS]

FOLDER is the working folder of experiments/training/run.py. CCNF experts are trained here, by
gradient descent, for as many epochs (default: 4), and put in the place of the trunk. Boxes are
disturbed as those of the validation faces are; the model is chosen by these people, who are neither
in the training nor in the validation.
"""

import dataclasses
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import jax  # noqa: E402
from common import DATA, table, write_results  # noqa: E402

jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import jclnf  # noqa: E402
from jclnf.annotations import AnnotatedFace, tight_box  # noqa: E402
from jclnf.images import read_photo  # noqa: E402
from jclnf.train.batches import COARSE, FINE  # noqa: E402
from jclnf.train.ccnf import experts_of, train_ccnf  # noqa: E402
from jclnf.train.faces import MIRROR_68, Faces, Posed, cut_out  # noqa: E402
from jclnf.train.loop import Course  # noqa: E402
from jclnf.train.shape_model import ShapeModel  # noqa: E402

CCNF_SCALINGS, CCNF_WINDOWS = (0.25, 0.35, 0.5), (11, 9, 7)
"""Reference pixels per millimetre and windows, as OpenFace's CCNF experts have them."""


def packed(faces: list[AnnotatedFace]) -> Faces:
    pictures, points = zip(
        *(cut_out(read_photo(face.image).grey, face.landmarks) for face in faces), strict=True
    )
    return Faces(list(pictures), np.array(points))


def with_ccnf(model: jclnf.Model, faces: Faces, folder: Path, epochs: int) -> jclnf.Model:
    """The model with CCNF experts trained by gradient descent in place of its trunk."""
    pdm = jax.device_get(model.pdm)
    shapes = ShapeModel(pdm.mean, pdm.components, pdm.eigenvalues, 1.4, [])
    posed = Posed.of(faces.with_mirrored(MIRROR_68), shapes)
    scales = [
        train_ccnf(
            posed,
            scaling,
            window,
            FINE if scale else COARSE,
            Course(epochs, batch=16, rate=2e-2),
            checkpoint=folder / f"ccnf{scale}_{epochs}.eqx",
        )
        for scale, (scaling, window) in enumerate(zip(CCNF_SCALINGS, CCNF_WINDOWS, strict=True))
    ]
    experts = experts_of(scales, CCNF_SCALINGS, CCNF_WINDOWS)
    s = len(scales)
    settings = jclnf.FitParams(jnp.full(s, 5.0), jnp.full(s, 1.5), jnp.zeros(s), CCNF_WINDOWS)
    return dataclasses.replace(model, experts=experts, defaults=settings)


def main() -> None:
    folder = Path(sys.argv[1])
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    final = jclnf.load_model()
    before = jclnf.load_model(folder / "before_fit.safetensors")
    annotated = jclnf.read_annotations(DATA / "faces" / "landmarks.csv", split="train")
    learned_from, held_out = jclnf.split_by_identity(annotated, 0.1, 0)
    rng = np.random.default_rng(0)
    boxes = []
    for face in held_out:
        x, y, w, h = tight_box(face.landmarks)
        corner = np.array([x, y]) + 0.0155 * (w + h) / 2 + rng.normal(0, 0.03, 2) * [w, h]
        boxes.append([*corner, *(np.array([w, h]) * np.exp(rng.normal(0, 0.05)))])

    def settings(model: jclnf.Model, **changes: object) -> jclnf.Model:
        return dataclasses.replace(model, defaults=model.defaults.replace(**changes))

    nowhere = jnp.full(2, 1e-6)
    steps = {
        "learned start alone": settings(before, weight_factor=nowhere, regularisation=1 / nowhere),
        f"+ CCNF experts by gradient descent, {epochs} epochs": with_ccnf(
            before, packed(learned_from), folder, epochs
        ),
        "+ trunk, first scale": settings(before, windows=(before.defaults.windows[0], 0)),
        "+ trunk, both scales": before,
        "+ training through the fit": final,
        "the same, first scale only": settings(final, windows=(final.defaults.windows[0], 0)),
        "the same, from 11 rotations": final,
    }
    lines = []
    for name, model in steps.items():
        several = jclnf.OPENFACE_ROTATIONS if name.endswith("rotations") else None
        found = jclnf.evaluate(model, held_out, boxes=boxes, rotations=several)
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
        f"{len(held_out)} faces of people held out of the training split. Errors in % of the outer "
        f"eye distance.\n\n{table(head, lines)}\n\nSettings that were learned: regularisation "
        f"{_text(final.defaults.regularisation)}, kernel width "
        f"{_text(final.defaults.kernel_width)} cells, softness {_text(final.experts.softness)} "
        "square cells (they began at 1 and 0.5, 1.5 and 1.2, 1 and 1)."
    )
    write_results(HERE, "What each step of the training brought", body, {"steps": lines})


def _text(values: object) -> str:
    return " and ".join(f"{v:.2f}" for v in np.asarray(values))


if __name__ == "__main__":
    main()
