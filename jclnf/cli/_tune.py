"""`jclnf tune`: a model's settings, experts or shape model, tuned on annotated images."""

import csv
import dataclasses
from typing import Any

import numpy as np

import jclnf
from jclnf.cli._base import OK, CommandError, complain, printable
from jclnf.cli._commands import Tune
from jclnf.cli._eval import start_boxes
from jclnf.cli._learning import begin_folder, check_options, read_faces, split_people
from jclnf.cli._settings import start_jax
from jclnf.errors import JclnfError
from jclnf.images import crop, read_image
from jclnf.outputs import replacing
from jclnf.runtime import use_all_cores
from jclnf.train import TUNE_CONFIG, tune


def run(options: Tune) -> int:
    """Tune; return the exit code."""
    out, folder = options.out, check_options(options, "tuning")
    if options.epochs < 1:
        raise CommandError("--epochs is at least 1")
    use_all_cores(8)
    start_jax(options)
    model = jclnf.load_model(options.model)
    parts = split_people(options, read_faces(options))
    begin_folder(options, folder, ("curves.csv", "offset.csv"), parts[1])
    learned, held_out = (_read(part, start_boxes(options.boxes, part)[0]) for part in parts)
    # A batch is not larger than there are faces.
    size = min(TUNE_CONFIG.batch_size, len(learned[0]))
    config = dataclasses.replace(
        TUNE_CONFIG, epochs=options.epochs, seed=options.seed, batch_size=size
    )
    tuned = tune(
        model,
        *learned,
        what=options.what,
        validation=held_out,
        rotations=jclnf.openface.ROTATIONS if options.starts > 1 else None,
        offset=options.offset,
        config=config,
        patience=options.patience,
        checkpoint=folder / "tuning.eqx",
        quiet=options.quiet,
    )
    jclnf.save_model(dataclasses.replace(tuned.model, name=out.stem), out)
    with replacing(folder / "curves.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "loss", "validation"])
        writer.writeheader()
        writer.writerows(tuned.history)
    if options.offset:
        with replacing(folder / "offset.csv") as part:
            np.savetxt(part, tuned.offset, "%.6f", delimiter=",", header="x,y")
    if not options.quiet:
        before, best = tuned.history[0]["validation"], tuned.history[tuned.epoch]["validation"]
        print(
            f"held out: {before:.2f} % of the eye distance before, {best:.2f} % after "
            f"{tuned.epoch} of {len(tuned.history) - 1} epochs"
        )
        print(printable(f"model in {out}, curves in {folder / 'curves.csv'}"))
    return OK


def _read(faces: Any, boxes: Any) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Crops of the images, with boxes and landmarks; each image that cannot be read is named."""
    crops, landmarks = [], []
    for face, box in zip(faces, boxes, strict=True):
        try:
            if box is None:
                raise JclnfError(f"{face.image}: there is no box for it")
            found = crop(read_image(face.image), box)
        except JclnfError as error:
            complain(str(error))
            continue
        crops.append(found)
        landmarks.append(face.landmarks - found.offset)
    if not crops:
        raise CommandError("none of the images can be used")
    images = [found.image for found in crops]
    return images, np.array([found.box for found in crops]), np.array(landmarks)
