"""Second part of the bundled model's training: a model of plain images learns to see
self-quotient images.

    python -m experiments.training.self_quotient FIRST FOLDER

FIRST is the model of an earlier version of jclnf, whose trunk saw grey levels as they are
(`git show 00ce7e0:models/default.safetensors`). Its trunk and its settings are trained on through
the fit on self-quotient images (`self_quotient` of `jclnf.experts`), from several seeds, and their
weights averaged; start and shape model are those of the whole training on self-quotient images
(`experiments.training`), which models/default.safetensors holds when this begins. Readout,
confidence and covariances are learned anew. Twenty minutes on two cores; FOLDER keeps the
checkpoints.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

import jclnf
from experiments.common import REPOSITORY, annotated, command_line
from jclnf.annotations import AnnotatedFace
from jclnf.cli._learning import split_people
from jclnf.files._serialise import FORMAT_VERSION
from jclnf.images import read_image
from jclnf.runtime import use_all_cores
from jclnf.train import (
    MIRROR_68,
    BoxExamples,
    Faces,
    Progress,
    TrainConfig,
    averaged,
    cut_out,
    fit_errors,
    learn_readout,
    one_of_each,
    summary,
    train_end_to_end,
    with_confidence,
)

CONFIGS = [TrainConfig(8, learning_rate=5e-4, seed=seed) for seed in (11, 12)]


def plain_model(path: Path, folder: Path) -> jclnf.Model:
    """A model of the format's version 1, whose weights mean the same but for what they look at."""
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["jclnf"])
    copy = folder / "first.safetensors"
    save_file(tensors, copy, {"jclnf": json.dumps(header | {"version": FORMAT_VERSION})})
    return jclnf.load_model(copy)


def packed(annotated: list[AnnotatedFace]) -> Faces:
    crops = [cut_out(read_image(face.image), face.landmarks) for face in annotated]
    images, points = zip(*crops, strict=True)
    return Faces(list(images), np.array(points))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    first, folder = args.first, args.folder
    folder.mkdir(parents=True, exist_ok=True)
    use_all_cores(2)
    jclnf.enable_compilation_cache()
    out = REPOSITORY / "models" / "default.safetensors"
    whole = jclnf.load_model(out)
    model = dataclasses.replace(
        plain_model(first, folder),
        pdm=whole.pdm,
        start=whole.start,
        readout=None,
        confidence=None,
        uncertainty=None,
    )
    people = argparse.Namespace(held_out=0.03, seed=0, data="the training split")
    faces, held_out = map(packed, split_people(people, annotated("train")))
    held = one_of_each(BoxExamples.of_fits(held_out))
    both_ways = faces.with_mirrored(MIRROR_68)
    trained = []
    for config in CONFIGS:
        progress = Progress(
            "fit", folder / f"fit{config.seed}.eqx", lambda history: print(history[-1]), quiet=True
        )
        trained.append(
            train_end_to_end(
                model,
                BoxExamples.of_fits(both_ways),
                config,
                progress,
                validate=lambda model: float(fit_errors(model, held).mean()),
            )
        )
    model = learn_readout(averaged(trained), faces)
    print(f"averaged, with the readout: {summary(fit_errors(model, held))}", flush=True)
    model = dataclasses.replace(model, name="default")
    jclnf.save_model(with_confidence(model, faces, held_out, MIRROR_68, quiet=True), out)


if __name__ == "__main__":
    main()
