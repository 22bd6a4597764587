"""Does tuning a model to bad images help? A night camera, far away.

    python -m experiments.adaptation

The experts and the learned start of the bundled model are tuned by `tune` on faces of the
training split, each once as it is and once as such a camera would show it. What is kept is on the
way from the old weights to the tuned ones, as far as held-out faces of that split allow. The
figures are on the validation split, of other people: the degraded images that the model is to
become better at, and the images as they are, at which it must not become worse. Needs the
development data.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

import jclnf
from experiments.adaptation.night import FACE, LIGHT, NOISE, by_night, by_night_of, seed_of
from experiments.common import (
    HOPPER_BOX,
    annotated,
    command_line,
    disturbed_box,
    hopper,
    table,
    validation,
    write_results,
)
from jclnf import draw
from jclnf.images import read_image
from jclnf.runtime import use_all_cores
from jclnf.train import TrainConfig, tune

HERE = Path(__file__).resolve().parent

LEARNED, WATCHED = 1500, 120
"""Faces to learn from, and to choose the epoch by; both count twice, by night and by day."""
CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=3e-3)
LIGHTS = ("by night", "as they are")
PARTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Parts of what was tuned that are mixed with what was there."""
ASKED, ALLOWED = -15.0, 2.0
"""Change asked by night, and allowed by day, in %; the latter also where the mixture is chosen."""


def mixed(model: jclnf.Model, tuned: jclnf.Model, part: float) -> jclnf.Model:
    """The model with experts and start on the way to the tuned ones (Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022)."""
    changes = {
        name: jax.tree.map(
            lambda a, b: (1 - part) * a + part * b if eqx.is_inexact_array(a) else a,
            getattr(model, name),
            getattr(tuned, name),
        )
        for name in ("experts", "start")
    }
    return dataclasses.replace(model, **changes)


def main() -> None:
    command_line(__doc__).parse_args()
    use_all_cores(8)
    import numpy as np

    jclnf.enable_compilation_cache()
    rng = np.random.default_rng(0)
    parts = jclnf.annotations.split_by_identity(annotated("train"), 0.2, 0)

    def pick(faces: Any, count: int) -> tuple[Any, Any]:
        """Some faces, and perturbed boxes by their images."""
        picked = [faces[index] for index in rng.permutation(len(faces))[:count]]
        return picked, {face.image: disturbed_box(face, rng) for face in picked}

    def both(faces: Any, boxes: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """Images, boxes and landmarks by day and by night."""
        images = [read(face.image) for face in faces for read in (read_image, by_night_of(boxes))]
        twice = [face for face in faces for _ in range(2)]
        return images, [boxes[face.image] for face in twice], [face.landmarks for face in twice]

    (picked, boxes), (chosen_by, their_boxes) = pick(parts[0], LEARNED), pick(parts[1], WATCHED)
    learned, watched = both(picked, boxes), both(chosen_by, their_boxes)
    model = jclnf.load_model()
    began = time.perf_counter()
    tuned = tune(
        model,
        *learned,
        what=("experts", "start"),
        validation=watched,
        config=CONFIG,
        quiet=True,
        on_epoch=print,
    )
    seconds = time.perf_counter() - began
    print(tuned.history, flush=True)

    def errors(used: jclnf.Model, faces: Any, boxes: Any) -> list[Any]:
        """By night, offsets left and removed; the same by day."""
        at = [boxes[face.image] for face in faces]
        readers = by_night_of(boxes), read_image
        found = [
            jclnf.evaluation.evaluate(used, faces, boxes=at, read=read).summary()
            for read in readers
        ]
        return [s.measures[key] for s in found for key in ("all_eye", "all_eye_corrected")]

    mixtures = {
        part: tuple(s.mean for s in errors(mixed(model, tuned.model, part), chosen_by, their_boxes))
        for part in (0.0, *PARTS)
    }
    limit = (1 + ALLOWED / 100) * mixtures[0.0][3]
    kept = min(
        (part for part in mixtures if mixtures[part][3] <= limit), key=lambda p: mixtures[p][1]
    )
    print(mixtures, kept, flush=True)

    val, boxes_of_val = validation()
    val_boxes = {face.image: box for face, box in zip(val, boxes_of_val, strict=True)}
    adapted = mixed(model, tuned.model, kept)
    lines, figures = [], {}
    for name, used in (("bundled", model), ("tuned", tuned.model), ("mixed", adapted)):
        found = errors(used, val, val_boxes)
        for light, pair in zip(LIGHTS, (found[:2], found[2:]), strict=True):
            figures[f"{light}, {name}"] = pair[1].mean
            shown = [f"{v:.2f}" for s in pair for v in (s.mean, s.median)]
            lines.append([f"{light}, {name}", *shown, f"{100 * pair[0].over_10:.1f} %"])
            print(lines[-1], flush=True)
    changes = {
        light: 100 * (figures[f"{light}, mixed"] / figures[f"{light}, bundled"] - 1)
        for light in LIGHTS
    }

    draw_fits(model, adapted)
    body = (
        f"{len(val)} faces of {len({face.identity for face in val})} people, none of them among "
        "those learned from; errors in % of the outer eye distance. By night: "
        f"{FACE:g} pixels to a face, {100 * LIGHT:g} % of the light, "
        f"noise of {NOISE:g} grey levels.\n\n"
        + table(
            ["", "mean", "median", "offsets removed: mean", "median", "over 10 %"], sorted(lines)
        )
        + f"\n\nMixed: {kept:g} of what was tuned and {1 - kept:g} of what was there. "
        "Change of its mean without offsets: "
        + f"{changes[LIGHTS[0]]:+.1f} % by night (asked: at most {ASKED:g} %), "
        + f"{changes[LIGHTS[1]]:+.1f} % as they are (asked: at most {ALLOWED:+g} %).\n\n"
        + f"Tuning took {seconds:.0f} s ({LEARNED} faces twice, {CONFIG.epochs} epochs; with other "
        "work on the machine). Error on the faces that chose the epoch: "
        + ", ".join(f"{line['validation']:.2f}" for line in tuned.history)
        + ". On the same faces, by night and as they are, offsets removed:\n\n"
        + table(
            ["part of what was tuned", *LIGHTS],
            [[f"{part:g}", f"{m[1]:.2f}", f"{m[3]:.2f}"] for part, m in mixtures.items()],
        )
        + "\n\n![Fits by night: the bundled model (left), mixed (right)](grace_hopper.png)"
    )
    write_results(
        HERE,
        "The bundled model, tuned to a night camera",
        body,
        {
            "figures": figures,
            "changes": changes,
            "kept": kept,
            "mixtures": mixtures,
            "seconds": seconds,
            "course": tuned.history,
        },
    )


def draw_fits(*models: jclnf.Model) -> None:
    """The same face by night, fitted by each model."""
    import cv2
    import numpy as np

    dark = by_night(read_image(hopper()), HOPPER_BOX, seed_of("grace_hopper.jpg"))
    x, y, w, h = (int(v) for v in HOPPER_BOX)
    # Drawn brighter than it is, or nothing could be seen.
    bright = np.clip(dark / LIGHT, 0, 255).astype(np.uint8)
    shown = []
    for model in models:
        drawn = draw.landmarks(bright, jclnf.fit(model, dark, HOPPER_BOX).landmarks)
        shown.append(drawn[y - h // 4 : y + 5 * h // 4, x - w // 4 : x + 5 * w // 4])
    cv2.imwrite(str(HERE / "grace_hopper.png"), np.hstack(shown))


if __name__ == "__main__":
    main()
