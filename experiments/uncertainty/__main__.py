"""How far may landmarks be off, and does the bundled model know? Checks its covariances.

    python -m experiments.uncertainty

They were sized on photographs that were held out of its training, whose landmarks were corrected by
hand. Here: other photographs of that kind (the test split), and frames of videos with an automatic
annotation by another convention, of which each landmark's own offset is taken away. Do the 50, 90
and 95 % ellipses hold as many of the truths?
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jclnf
from experiments.common import DATA, command_line, table, validation, write_results
from jclnf.annotations import AnnotatedFace, BoxTable, read_annotations
from jclnf.evaluation._evaluate import yaws
from jclnf.evaluation._metrics import GROUPS_68, outer_eye_distance, remove_offsets
from jclnf.images import read_image
from jclnf.runtime import use_all_cores
from jclnf.train._uncertainty import limit, mahalanobis

HERE = Path(__file__).resolve().parent

SHARES = (0.5, 0.9, 0.95)
YAWS = {"yaw under 15 degrees": (0, 15), "15 to 30 degrees": (15, 30), "over 30": (30, 90)}


class Checked(NamedTuple):
    """Fits of `f` faces."""

    errors: np.ndarray
    """`(f, 68, 2)`, % of the outer eye distance."""
    covariance: np.ndarray
    """`(f, 68, 2, 2)`, as the errors."""
    yaw: np.ndarray
    """`(f,)` degrees."""


def checked(
    model: jclnf.Model, faces: list[AnnotatedFace], boxes: list[Any], *, offsets: bool
) -> Checked:
    """Fits of annotated faces; without each landmark's own offset unless `offsets`."""
    params = model.defaults.replace(uncertainty=True)
    images = [read_image(face.image) for face in faces]
    result = jclnf.fit_images(model, images, np.stack(boxes), params)
    truth = np.stack([face.landmarks for face in faces])
    found = np.asarray(result.landmarks, np.float64)
    unit = outer_eye_distance(truth)[:, None, None] / 100
    errors = ((found if offsets else remove_offsets(found, truth)) - truth) / unit
    covariance = np.asarray(result.covariance, np.float64) / unit[..., None] ** 2
    return Checked(errors, covariance, np.rad2deg(np.abs(yaws(model.pdm, truth))))


def report(fits: Checked) -> tuple[str, dict[str, Any]]:
    """A table with a line for each group of landmarks and faces, and the same as numbers."""
    distances = np.asarray(mahalanobis(fits.covariance, fits.errors))
    expected = np.trace(fits.covariance, axis1=-2, axis2=-1)
    actual = (fits.errors**2).sum(-1)
    every = np.ones(len(actual), bool)
    groups = {name: (every, index) for name, index in GROUPS_68.items()}
    groups["all"] = every, np.arange(68)
    for name, (low, high) in YAWS.items():
        groups[f"{name} ({np.sum((fits.yaw >= low) & (fits.yaw < high))} faces)"] = (
            (fits.yaw >= low) & (fits.yaw < high),
            np.arange(68),
        )
    numbers = {}
    for name, (faces, landmarks) in groups.items():
        at = np.ix_(faces, landmarks)
        held = [float(100 * np.mean(distances[at] < limit(share))) for share in SHARES]
        spread = [float(np.sqrt(of[at].mean())) for of in (expected, actual)]
        numbers[name] = held + spread
    lines = [
        [name, *(f"{v:.1f} %" for v in values[:3]), *(f"{v:.2f}" for v in values[3:])]
        for name, values in numbers.items()
    ]
    header = [*(f"within {100 * share:g} %" for share in SHARES), "expected, RMS", "actual, RMS"]
    each = np.sqrt(expected).mean(1), np.sqrt(actual).mean(1)
    order = np.argsort(each[0])
    tenth = len(order) // 10
    worst, best = (each[1][chosen].mean() for chosen in (order[-tenth:], order[:tenth]))
    rank = np.corrcoef(*(np.argsort(np.argsort(of)) for of in each))[0, 1]
    text = (
        f"{table(['', *header], lines)}\n\n"
        f"Rank correlation of a face's expected and actual mean error: {rank:.2f}. The tenth of "
        f"the faces that is expected to be worst has a mean error of {worst:.2f} %, the tenth "
        f"expected to be best {best:.2f} %."
    )
    return text, {"groups": numbers, "rank": rank, "worst tenth": worst, "best tenth": best}


def main() -> None:
    command_line(__doc__).parse_args()
    use_all_cores(8)
    jclnf.enable_compilation_cache()
    model = jclnf.load_model()
    photographs = read_annotations(DATA / "photographs" / "landmarks.csv", split="test")
    boxes = BoxTable(DATA / "photographs" / "test_boxes.csv")
    starts = [boxes.boxes(face.image)[0] for face in photographs]
    texts, numbers = [], {}
    for title, faces, at, offsets in (
        ("photographs, corrected by hand", photographs, starts, True),
        ("frames of videos, offsets removed", *validation(), False),
    ):
        text, numbers[title] = report(checked(model, faces, at, offsets=offsets))
        texts.append(f"## {len(faces)} {title}\n\n{text}")
    body = (
        "Share of landmarks that the ellipse of the bundled model holds; distances in % of the "
        "outer eye distance.\n\n" + "\n\n".join(texts)
    )
    write_results(HERE, "How far landmarks may be off", body, numbers)


if __name__ == "__main__":
    main()
