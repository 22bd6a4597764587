"""Whether a fit knows that it went wrong: checks the bundled model's confidence.

    python -m experiments.confidence

On the validation split: from its boxes, from boxes and starts that are perturbed up to failure, and
in boxes and images without a face.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import Row, command_line, pivot, table, validation, write_results
from jclnf.detect._haar import CASCADE, correct
from jclnf.evaluation import OUTER_EYES
from jclnf.fitting import FACE_LIMIT, LANDMARK_LIMIT, initial_state, postprocess
from jclnf.geometry import tight_box
from jclnf.images import read_image
from jclnf.runtime import use_all_cores
from jclnf.tracking import overlap
from jclnf.train._fit_examples import no_face, perturbed_start

HERE = Path(__file__).resolve().parent

CHUNK = 32
BINS = 10


class Case(NamedTuple):
    """A box in an image, and what is to be fitted from there."""

    kind: str
    grey: np.ndarray
    box: np.ndarray
    truth: np.ndarray
    """NaN without a face."""
    far: float = 0.0
    """How far the start is moved, see `jclnf.train._fit_examples.perturbed_start`."""


class Outcome(NamedTuple):
    """Fits of cases; arrays with a leading axis."""

    trust: Any
    """The confidence of the face, then of each landmark."""
    errors: Any
    """% of the eye distance."""
    ok: Any


def cases() -> list[Case]:
    """The boxes that are tried on the validation faces."""
    cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / CASCADE))
    found = []
    nothing = np.full((68, 2), np.nan)
    for number, (face, given) in enumerate(zip(*validation(), strict=True)):
        rng = np.random.default_rng(number)
        grey, truth = read_image(face.image), face.landmarks
        box = np.array(given)
        side = box[2:].mean()
        tried = [("as given", box, 0.0), ("start moved", box, rng.uniform())]
        for far in (0.25, 0.5, 0.75, 1.0):
            tried.append(("box disturbed", disturbed(box, far, rng), 0.0))
        angle = rng.uniform(0, 2 * np.pi)
        beside = 0.5 * side * np.array([np.cos(angle), np.sin(angle)])
        tried += [
            ("half a face away", box + [*beside, 0, 0], 0.0),
            ("half the size", about(box, 0.5), 0.0),
            ("twice the size", about(box, 2.0), 0.0),
        ]
        found += [Case(kind, grey, at, truth, far) for kind, at, far in tried]
        there = tight_box(truth)
        found += [Case("background", grey, at, truth) for at in backgrounds(grey, there, rng)]
        found += [
            Case("detector's mistakes", grey, at, truth) for at in mistakes(cascade, grey, there)
        ]
        if number % 2 == 0:
            image = no_face(grey.astype(np.uint8), rng).astype(np.float32)
            found.append(Case("noise, or in disorder", image, box, nothing))
        if number % 8 == 0:
            flat = np.full_like(grey, rng.uniform(20, 235))
            faint = flat + rng.normal(0, rng.uniform(0, 3), flat.shape).astype(np.float32)
            found.append(Case("flat", np.clip(faint, 0, 255), box, nothing))
    return [case for case in found if usable(case)]


def usable(case: Case) -> bool:
    try:
        jclnf.crop(case.grey, case.box)
    except jclnf.errors.BoxError:  # its centre is outside the image
        return False
    return True


def about(box: np.ndarray, factor: float) -> np.ndarray:
    """The box, larger by a factor about its centre."""
    return np.concatenate([box[:2] + (1 - factor) / 2 * box[2:], factor * box[2:]])


def disturbed(box: np.ndarray, far: float, rng: np.random.Generator) -> np.ndarray:
    moved = box + np.concatenate([0.35 * far * box[2:].mean() * rng.normal(size=2), np.zeros(2)])
    return about(moved, np.exp(0.3 * far * rng.normal()))


def backgrounds(grey: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """A box of the image that shows nothing of the face, if there is room."""
    for _ in range(20):
        side = there[2:].mean() * rng.uniform(0.3, 1.2)
        rows, columns = grey.shape
        if side < 12 or side > min(rows, columns):
            continue
        at = np.array([*rng.uniform(0, [columns - side, rows - side]), side, side])
        if overlap(at, there) == 0:
            return [at]
    return []


def mistakes(cascade: Any, grey: np.ndarray, there: np.ndarray) -> list[np.ndarray]:
    """Boxes of what OpenCV's Haar cascade takes for a face, at its most tolerant, and is none."""
    found = cascade.detectMultiScale(grey.astype(np.uint8), scaleFactor=1.1, minNeighbors=1)
    boxes = [correct(np.asarray(box, float)) for box in found]
    return [box for box in boxes if box[2] >= 12 and overlap(box, there) < 0.1]


def outcomes(model: jclnf.Model, tried: list[Case]) -> Outcome:
    """The fits of all cases, in their order."""

    @jax.jit
    def fits(model: jclnf.Model, batch: Any) -> Outcome:
        def one(case: Any) -> Outcome:
            image, box, truth, far, seed = case
            pose, shape = initial_state(model, image, box)
            pose, shape = perturbed_start(model, pose, shape, far, jax.random.key(seed))
            result = jclnf.fitting.fit_from(model, image, pose, shape, model.defaults)
            result = postprocess(model, image, result, model.defaults)
            eyes = jnp.linalg.norm(truth[OUTER_EYES[0]] - truth[OUTER_EYES[1]])
            errors = 100 * jnp.linalg.norm(result.landmarks - truth, axis=-1) / eyes
            trust = jnp.concatenate([result.confidence[None], result.landmark_confidence])
            return Outcome(trust, errors, result.ok)

        return jax.lax.map(one, batch)

    devices = jax.local_devices()
    models = [jax.device_put(model, device) for device in devices]
    by_size: dict[int, list[tuple[int, jclnf.images.Crop]]] = {}
    for index, case in enumerate(tried):
        crop = jclnf.crop(case.grey, case.box, sizes=(256, 512, 1024, 2048, 4096))
        by_size.setdefault(len(crop.image), []).append((index, crop))
    order, parts = [], []
    for crops in by_size.values():
        for first in range(0, len(crops), CHUNK):
            part = crops[first : first + CHUNK]
            order += [index for index, _ in part]
            filled = part + part[-1:] * (CHUNK - len(part))
            batch = (
                np.stack([crop.image for _, crop in filled]),
                np.stack([crop.box for _, crop in filled]),
                np.stack([tried[index].truth - crop.offset for index, crop in filled]).astype(
                    np.float32
                ),
                np.array([tried[index].far for index, _ in filled], np.float32),
                np.array([index for index, _ in filled], np.uint32),
            )
            device = len(parts) % len(devices)
            found = fits(models[device], jax.device_put(batch, devices[device]))
            parts.append((len(part), found))
            if len(parts) > 2 * len(devices):
                jax.block_until_ready(parts[-2 * len(devices)][1])
    each = [[np.asarray(array)[:count] for array in found] for count, found in parts]
    joined = [np.concatenate(arrays) for arrays in zip(*each, strict=True)]
    back = np.argsort(order)
    return Outcome(*(array[back] for array in joined))


def area_under_roc(score: np.ndarray, right: np.ndarray) -> float:
    """The chance that something right scores more than something wrong."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = right.sum()
    return float(
        (ranks[right].sum() - positive * (positive + 1) / 2) / (positive * (len(right) - positive))
    )


def reliability(trust: np.ndarray, right: np.ndarray) -> tuple[list[list[str]], float]:
    """Bins of equal width: how many, mean confidence, part that is right; the expected calibration
    error (mean difference of the last two, weighted by the counts)."""
    bins = np.minimum((trust * BINS).astype(int), BINS - 1)
    rows, error = [], 0.0
    for k in range(BINS):
        chosen = bins == k
        if chosen.any():
            said, was = trust[chosen].mean(), right[chosen].mean()
            error += chosen.mean() * abs(said - was)
            within = f"{k / BINS:g} to {(k + 1) / BINS:g}"
            rows.append([within, str(chosen.sum()), f"{said:.3f}", f"{was:.3f}"])
    return rows, float(error)


def cost(model: jclnf.Model) -> tuple[float, float]:
    """Milliseconds of a fit without and with the confidence: medians of alternating batches."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0, 255, (32, 256, 256)), jnp.float32)
    boxes = jnp.tile(jnp.array([80.0, 80.0, 90.0, 90.0]), (32, 1))
    plain = dataclasses.replace(model, confidence=None)

    @jax.jit
    def fits(model: jclnf.Model, images: Any, boxes: Any) -> Any:
        def one(face: Any) -> Any:
            pose, shape = initial_state(model, *face)
            result = jclnf.fitting.fit_from(model, face[0], pose, shape, model.defaults)
            return postprocess(model, face[0], result, model.defaults)

        return jax.lax.map(one, (images, boxes))

    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(16):
        for with_it, which in ((False, plain), (True, model)):
            begin = time.perf_counter()
            jax.block_until_ready(fits(which, images, boxes))
            times[with_it].append((time.perf_counter() - begin) / len(images) * 1000)
    return float(np.median(times[False][1:])), float(np.median(times[True][1:]))


def main() -> None:
    command_line(__doc__).parse_args()
    use_all_cores(8)
    jclnf.enable_compilation_cache()
    model = jclnf.load_model()
    confidence = model.confidence
    assert confidence is not None
    tried = cases()
    found = outcomes(model, tried)
    kinds = np.array([case.kind for case in tried])
    right = found.ok & (found.errors.mean(1) < FACE_LIMIT)
    points_right = found.ok[:, None] & (found.errors < LANDMARK_LIMIT)
    no_face_kinds = ("background", "detector's mistakes", "noise, or in disorder", "flat")
    faces = ~np.isin(kinds, no_face_kinds)
    trust, rows = found.trust, []
    for where, chosen in (("faces", faces), ("faces and others", np.ones(len(kinds), bool))):
        said, was = trust[chosen], right[chosen]
        points, points_were = said[:, 1:].ravel(), points_right[chosen].ravel()
        area, points_area = area_under_roc(said[:, 0], was), area_under_roc(points, points_were)
        error, points_error = (
            reliability(*both)[1] for both in ((said[:, 0], was), (points, points_were))
        )
        rows += [
            Row("face, area under ROC", where, len(was), area, at_least=0.97),
            Row("landmark, area under ROC", where, points.size, points_area),
            Row("face, calibration error", where, len(was), error),
            Row("landmark, calibration error", where, points.size, points_error),
        ]
    accepted = trust[:, 0] > float(confidence.threshold)
    lines = []
    for kind in dict.fromkeys(kinds):
        chosen = kinds == kind
        good, bad = chosen & right, chosen & ~right
        lines.append(
            [kind, chosen.sum(), f"{100 * right[chosen].mean():.1f} %"]
            + [
                f"{100 * accepted[k].mean():.1f} % of {k.sum()}" if k.any() else ""
                for k in (good, bad)
            ]
            + [f"{trust[chosen, 0].mean():.3f}"]
        )
    missed = accepted & ~right & faces
    errors = found.errors.mean(1)
    usual = kinds == "as given"
    whole, whole_error = reliability(trust[:, 0], right)
    points, points_error = reliability(trust[faces][:, 1:].ravel(), points_right[faces].ravel())
    usual_points = reliability(trust[usual][:, 1:].ravel(), points_right[usual].ravel())
    before, after = cost(model)
    head = ["confidence", "fits", "said, mean", "right"]
    body = (
        f"{faces.sum()} fits of 495 validation faces and {(~faces).sum()} of what is no face."
        f"\n\n{pivot(rows)}\n\n"
        "## What is accepted\n\n"
        + table(["", "fits", "right", "right ones accepted", "wrong ones accepted", "mean"], lines)
        + "\n\nErrors of the wrong fits of faces that are accepted: median "
        f"{np.median(errors[missed]):.1f} %, 90th percentile "
        f"{np.percentile(errors[missed], 90):.1f} % of the eye distance.\n\n"
        "## Reliability of the face's confidence, all fits\n\n"
        f"{table(head, whole)}\n\nExpected calibration error {whole_error:.4f}; from the boxes as "
        f"given {reliability(trust[usual, 0], right[usual])[1]:.4f}.\n\n"
        f"## Reliability of the landmarks' confidence, fits of faces\n\n{table(head, points)}\n\n"
        f"Expected calibration error {points_error:.4f}; from the boxes as given "
        f"{usual_points[1]:.4f} (said {trust[usual][:, 1:].mean():.3f} on the mean, right "
        f"{points_right[usual].mean():.3f}), where the area under the ROC is "
        f"{area_under_roc(trust[usual][:, 1:].ravel(), points_right[usual].ravel()):.3f}.\n\n"
        f"## Cost\n\nA fit takes {before:.2f} ms without and {after:.2f} ms with the confidence "
        "(medians of alternating batches of 32, one core, other programs running)."
    )
    data = {"rows": [dataclasses.asdict(row) for row in rows], "kinds": lines}
    data |= {"faces": whole, "landmarks": points, "milliseconds": [before, after]}
    write_results(HERE, "Does a fit know that it went wrong?", body, data)


if __name__ == "__main__":
    main()
