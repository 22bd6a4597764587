"""What each choice in a fit with the trunk brings, on the faces held out.

    python -m experiments.training.trunk.choices TRUNK.npz SHAPES [--fine DIR]

`SHAPES` is the folder of `shape.py`'s models. Errors are in % of the eye distance.
"""

import argparse
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import table
from experiments.training.trunk.assemble import assembled
from experiments.training.trunk.evaluate import HEADER, measures, model_landmarks
from experiments.training.trunk.faces import read_faces
from experiments.training.trunk.fine import LARGEST


def variants(model: jclnf.Model) -> dict[str, jclnf.Model]:
    """The model with one choice changed each."""

    def other(**settings: object) -> jclnf.Model:
        return dataclasses.replace(model, defaults=model.defaults.replace(**settings))

    def softness(value: float) -> jclnf.Model:
        experts = dataclasses.replace(model.experts, softness=jnp.full(2, value))
        return dataclasses.replace(model, experts=experts)

    coarse = float(model.defaults.regularisation[0])
    found = {
        f"regularisation {r:g} at the end": other(regularisation=jnp.array([coarse, r]))
        for r in (0.003, 0.3, 1.0)
    }
    found["all landmarks weigh the same"] = softness(1e9)
    found["weights by spread, softness 1"] = softness(1.0)
    found["kernels of 3 px"] = other(kernel_width=jnp.array([3.0, 3.0]))
    found["2 iterations"] = other(iterations=2)
    found["windows of 15"] = other(windows=(15, 15))
    found["windows of 41"] = other(windows=(41, 41))
    found["one look"] = other(windows=(0, model.defaults.windows[1]))
    if model.experts.regions:
        plain = dataclasses.replace(model.experts, refined=(False, False))
        found["without the fine stage"] = dataclasses.replace(model, experts=plain)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trunk", type=Path)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("--fine", type=Path)
    args = parser.parse_args()
    held = read_faces("held out", LARGEST)
    crops = [
        jclnf.crop(image, box.astype(np.float32), sizes=(512,))
        for image, box in zip(held.images, held.boxes, strict=True)
    ]
    lines = []

    def add(name: str, found: np.ndarray) -> None:
        numbers = measures(found, held.points)
        lines.append([name, *(f"{numbers[key]:.2f}" for key in HEADER)])
        print(*lines[-1], flush=True)

    def fitted(model: jclnf.Model) -> np.ndarray:
        fits = [(jclnf.fit(model, crop.image, crop.box), crop.offset) for crop in crops]
        return np.array([np.asarray(fit.landmarks) + offset for fit, offset in fits], np.float64)

    alone = model_landmarks(str(args.trunk))(held.images, held.boxes)
    add("the trunk's own points, two passes", alone)
    if args.fine:
        both = model_landmarks(f"{args.trunk}+{args.fine}")
        add("the trunk's and the fine stage's", both(held.images, held.boxes))
    model = assembled(args.trunk, args.fine, args.shapes / "shape_40.npz")
    add("fitted, 40 modes", fitted(model))
    fewer = assembled(args.trunk, args.fine, args.shapes / "shape_34.npz")
    add("34 modes", fitted(fewer))
    for name, variant in variants(model).items():
        add(name, fitted(variant))
    print(table([f"held out ({len(held)})", *HEADER.values()], lines))


if __name__ == "__main__":
    main()
