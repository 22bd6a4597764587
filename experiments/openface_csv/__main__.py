"""Do jclnf's tables say what OpenFace's say? Four photographs, each number beside OpenFace's.

    python -m experiments.openface_csv

Landmarks, landmarks in space, head pose and gaze of OpenFace's sample photographs, from the boxes
of its detector, against the tables that OpenFace 2.2's C++ wrote for them. Needs `openface/` of
the development data.
"""

from pathlib import Path

import jax
import numpy as np

import jclnf
from experiments.common import OPENFACE, Row, command_line, model_file, pivot, write_results
from jclnf.images import read_image_file
from jclnf.openface import OpenFaceTable, measure_faces
from tests.support.recordings import box_of, csv_rows

HERE = Path(__file__).resolve().parent


def block(row: dict[str, str], pattern: str, axes: str, count: int) -> np.ndarray:
    return np.array([[float(row[pattern.format(a, i)]) for a in axes] for i in range(count)])


def main() -> None:
    command_line(__doc__).parse_args()
    jclnf.enable_compilation_cache()
    model = jclnf.load_openface(model_file("general"), parts=True, validator=True)
    params = jclnf.FitParams.openface(model)
    boxes = {row["image"]: row for row in csv_rows(OPENFACE / "golden_csv" / "mtcnn_boxes.csv")}
    rows: list[Row] = []
    for number in (1, 3, 4, 5):
        name = f"sample{number}"
        image = read_image_file(OPENFACE / "samples" / f"{name}.jpg")
        box = box_of(boxes[f"{name}.jpg"])
        crop = jclnf.crop(image.grey, box)
        # Its program for images was run as it is by default: from one start.
        fit = jclnf.fit(model, crop.image, crop.box, params)
        result = jax.device_get(fit.shifted(crop.offset))
        height, width = image.grey.shape
        (ours,) = measure_faces([result], jclnf.space.Camera.assumed(width, height), batch=1)
        file = OPENFACE / "golden_csv" / f"{name}.clnf_general.csv"
        (theirs,) = csv_rows(file)
        with file.open() as text:
            form = OpenFaceTable(68, 34, video=False, gaze=True, spaces=True)
            same_header = text.readline() == form.header
        eyes = ours.gaze
        directions = block(theirs, "gaze_{1}_{0}", "xyz", 2)
        cosines = (directions * eyes.directions).sum(1) / np.linalg.norm(directions, axis=1)
        far = float(theirs["pose_Tz"])
        turns = np.array([float(theirs[f"pose_R{a}"]) for a in "xyz"])
        places = np.array([float(theirs[f"pose_T{a}"]) for a in "xyz"])

        def apart(found: np.ndarray, pattern: str, axes: str) -> np.ndarray:
            found = found.reshape(-1, len(axes))
            return np.linalg.norm(found - block(theirs, pattern, axes, len(found)), axis=1)  # noqa: B023

        space = apart(ours.space, "{}_{}", "XYZ")
        eye_space = apart(eyes.landmarks3d, "eye_lmk_{}_{}", "XYZ")
        measured = [
            ("the same columns", 0.0 if same_header else 1.0, 0.0, ""),
            ("landmarks, mean", apart(ours.landmarks, "{}_{}", "xy").mean(), 0.3, " px"),
            ("landmarks, worst", apart(ours.landmarks, "{}_{}", "xy").max(), None, " px"),
            (
                "eye landmarks, mean",
                apart(eyes.landmarks, "eye_lmk_{}_{}", "xy").mean(),
                0.3,
                " px",
            ),
            ("landmarks in space, mean, of the distance", 100 * space.mean() / far, 1.0, " %"),
            ("eye landmarks in space, the same", 100 * eye_space.mean() / far, 1.0, " %"),
            ("head rotation, worst angle", np.abs(ours.head.rotation - turns).max(), 0.02, " rad"),
            (
                "head position, of the distance",
                100 * np.linalg.norm(ours.head.translation - places) / far,
                1.0,
                " %",
            ),
            (
                "gaze, worse eye",
                np.degrees(np.arccos(np.clip(cosines, -1, 1))).max(),
                2.0,
                " degrees",
            ),
            ("confidence", abs(float(result.confidence) - float(theirs["confidence"])), None, ""),
        ]
        rows += [
            Row(what, name, 1, float(value), limit, unit=unit.strip())
            for what, value, limit, unit in measured
        ]
    write_results(HERE, "OpenFace's tables of four photographs", pivot(rows), {"rows": rows})


if __name__ == "__main__":
    main()
