"""A shape model learned from the landmarks that were corrected by hand: what it leaves of others.

    python -m experiments.training.trunk.shape

Learned from the training photographs by `jclnf.train`, with faces drawn from the ICT-FaceKit basis
as the prior about depth, and fitted to photographs held out. Errors are in % of the eye distance.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import jclnf
from experiments.common import model_file, table, write_results
from experiments.training.ict import examples
from experiments.training.trunk.evaluate import measures
from experiments.training.trunk.faces import Faces, read_faces
from jclnf.evaluation._metrics import GROUPS_68, nme, outer_eye_distance
from jclnf.train._faces import MIRROR_68
from jclnf.train._shape_model import ShapeModel, basis_times, fit_shapes, learn_shape_model

HERE = Path(__file__).resolve().parent
FREE, PRIOR = 0.03, 0.55
"""Millimetres that points are trusted to: nearly without a prior, and with a variance of 0.3."""
MODES = (25, 34, 40)
EXAMPLES = 5.0
"""Millimetres that the examples of the prior are trusted to."""


def shapes_of(model: ShapeModel, points: np.ndarray, noise: float) -> np.ndarray:
    """The landmarks nearest to the points that the model has, `(f, n, 2)` pixels."""
    poses, latent = fit_shapes(model, points, noise=noise, steps=40)
    shapes = model.mean + basis_times(model.components * np.sqrt(model.eigenvalues), latent)
    seen = shapes @ poses.matrix[:, :2].transpose(0, 2, 1)
    return poses.scale[:, None, None] * seen + poses.translation[:, None]


def of_pdm(pdm: jclnf.PDM) -> ShapeModel:
    """A model's shape model as training has it."""
    mean, modes, values = (
        np.asarray(a, float) for a in (pdm.mean, pdm.components, pdm.eigenvalues)
    )
    return ShapeModel(mean, modes, values, 1.0)


def numbers(model: ShapeModel, faces: Faces) -> dict[str, float]:
    """What a model leaves of true points."""
    points = faces.points
    eyes = outer_eye_distance(points)
    found: dict[str, float] = {}
    for name, noise in (("free", FREE), ("prior", PRIOR)):
        fitted = shapes_of(model, points, noise)
        of = measures(fitted, points)
        found |= {f"{name}_{key}": of[key] for key in ("mean", "mouth", "mouth_bias", "mouth_r")}
        found |= {f"{name}_{key}": of[key] for key in ("lid", "lid_bias", "lid_r")}
        for group in ("jaw", "brows", "eyes", "mouth"):
            found[f"{name}_group_{group}"] = float(
                nme(fitted, points, eyes, GROUPS_68[group]).mean()
            )
    return found


COLUMNS = {
    "free_mean": "without a prior",
    "prior_mean": "with the prior (0.3 mm^2)",
    "prior_group_jaw": "jaw",
    "prior_group_brows": "brows",
    "prior_group_eyes": "eyes",
    "prior_group_mouth": "mouth",
    "prior_mouth": "mouth opening: error",
    "prior_mouth_bias": "bias",
    "prior_mouth_r": "r",
    "prior_lid": "lid opening: error",
    "prior_lid_bias": "bias",
    "prior_lid_r": "r",
}


def save(model: ShapeModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: getattr(model, name) for name in ("mean", "components", "eigenvalues", "noise")}
    np.savez(path, **arrays)


def load(path: Path) -> ShapeModel:
    with np.load(path) as a:
        return ShapeModel(a["mean"], a["components"], a["eigenvalues"], float(a["noise"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument(
        "--run-dir", type=Path, help="keep the shape models there, and go on from those that are"
    )
    parser.add_argument("--test", action="store_true", help="also measure the chosen one on `test`")
    args = parser.parse_args()
    faces, held, prior = read_faces("train", 110), read_faces("held out", 110), examples()
    lines, found = [], {}

    def add(name: str, model: ShapeModel, on: Faces) -> None:
        found[name] = numbers(model, on)
        modes = model.components.shape[-1]
        line = [name, modes, *(f"{found[name][key]:.2f}" for key in COLUMNS)]
        lines.append(line)
        print(*line, flush=True)

    references = {
        "OpenFace": of_pdm(jclnf.load_openface(model_file("general")).pdm),
        "bundled model": of_pdm(jclnf.load_model().pdm),
    }
    for name, model in references.items():
        add(name, model, held)
    learned = {}
    for modes in MODES:
        kept = args.run_dir and args.run_dir / f"shape_{modes}.npz"
        if kept and kept.exists():
            model = load(kept)
        else:
            began = time.monotonic()
            model = learn_shape_model(
                faces.points,
                prior,
                MIRROR_68,
                modes=modes,
                iterations=args.iterations,
                example_noise=EXAMPLES,
            )
            print(f"{time.monotonic() - began:.0f} s, noise {model.noise:.3f} mm", flush=True)
            if kept:
                save(model, kept)
        learned[modes] = model
        add(f"learned, {modes} modes", model, held)
    if args.test:
        test = read_faces("test", 110)
        for name, model in [*references.items(), ("learned", learned[40])]:
            add(f"test: {name}", model, test)
    body = (
        f"{len(faces)} faces to learn from, {len(held)} held out. Distance of the nearest shape "
        "from the true points, % of the eye distance; from the third column on with the prior:\n\n"
    )
    body += table(["shape model", "modes", *COLUMNS.values()], lines)
    folder = HERE / "shape"
    folder.mkdir(exist_ok=True)
    write_results(folder, "A shape model of photographs", body, {"numbers": found})


if __name__ == "__main__":
    main()
