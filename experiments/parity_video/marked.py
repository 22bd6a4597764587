"""Are closed eyes and open mouths, marked by eye, told from the others by the openings?

    python -m experiments.parity_video.marked

The frames of default.wmv were looked at once, and those of which there is no doubt are listed in
`marked/frames.txt`. Lid opening is the mean of |37-41| and |43-47|, mouth opening |62-66|, both by
the distance of the outer eye corners.
"""

from pathlib import Path

import numpy as np

import jclnf
from experiments.common import Row, command_line, grey_frames, pivot, write_results
from experiments.confidence.__main__ import area_under_roc
from experiments.parity_video.__main__ import TALKING, followed, written
from experiments.training.trunk.evaluate import openings
from jclnf.detect import find_faces
from jclnf.evaluation._metrics import outer_eye_distance

HERE = Path(__file__).resolve().with_suffix("")

ASKED = 0.98


def marks() -> dict[str, list[int]]:
    """The frames in each line of the file."""
    found = {}
    for line in (HERE / "frames.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, _, ranges = line.partition(":")
        ends = [[int(end) for end in text.split("-")] for text in ranges.split()]
        found[name] = [frame for end in ends for frame in range(end[0], end[-1] + 1)]
    return found


def on_their_own() -> np.ndarray:
    """Landmarks of the bundled model, each frame from a detector's box of the same frame; NaN where
    none was found."""
    frames, detector = list(grey_frames(TALKING)), jclnf.detect.default()
    boxes = [find_faces(detector, frame) for frame in frames]
    kept = [i for i, found in enumerate(boxes) if len(found)]
    fits = jclnf.fit_images(
        jclnf.load_model(), [frames[i] for i in kept], np.stack([boxes[i][0] for i in kept])
    )
    landmarks = np.full((len(frames), 68, 2), np.nan)
    landmarks[kept] = fits.landmarks
    return landmarks


def rows_of(where: str, landmarks: np.ndarray, marked: dict[str, list[int]]) -> list[Row]:
    """How well openings tell marked frames apart, and how far apart they are."""
    mouth, lids = (100 * of / outer_eye_distance(landmarks) for of in openings(landmarks))
    rows = []
    for name, opening, wide, shut in (
        ("eyes", lids, "eyes open", "eyes closed"),
        ("mouth", mouth, "mouth open", "mouth closed"),
    ):
        opened, closed = (opening[marked[key]] for key in (wide, shut))
        opened, closed = (of[np.isfinite(of)] for of in (opened, closed))
        label = np.repeat([True, False], [len(opened), len(closed)])
        auc = area_under_roc(np.concatenate([opened, closed]), label)
        rows += [
            Row(f"{name}: AUC", where, len(label), auc, at_least=ASKED),
            Row(f"{wide}, median", where, len(opened), np.median(opened), unit="%"),
            Row(f"{wide}, least", where, len(opened), opened.min(), unit="%"),
            Row(f"{shut}, median", where, len(closed), np.median(closed), unit="%"),
            Row(f"{shut}, largest", where, len(closed), closed.max(), unit="%"),
        ]
    return rows


def main() -> None:
    command_line(__doc__).parse_args()
    marked = marks()
    tracker = jclnf.Tracker(jclnf.load_model(), single=True)
    own = on_their_own()
    courses = {
        "bundled model, followed": followed(tracker, TALKING).landmarks,
        "bundled model, each frame on its own": own,
        "OpenFace's general model, C++, followed": written("default.clnf_general").landmarks,
    }
    rows = [row for where, found in courses.items() for row in rows_of(where, found, marked)]
    counts = ", ".join(f"{name}: {len(frames)}" for name, frames in marked.items())
    without = int(np.isnan(own[:, 0, 0]).sum())
    body = f"""{TALKING}, {len(own)} frames; marked by eye: {counts}. Openings in % of the
distance of the outer eye corners. In {without} frames the detector found no face.

{pivot(rows)}"""
    write_results(HERE, "Closed eyes and open mouths", body, {"rows": rows})


if __name__ == "__main__":
    main()
