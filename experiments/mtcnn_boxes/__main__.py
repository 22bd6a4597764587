"""Compare the boxes of `MtcnnDetector` with those of OpenFace's C++, and with annotated faces.

Recorded are the boxes of ten images and of the first frames of three clips. On the validation
people: recall, and what its boxes and those of `HaarDetector` are off the landmarks' extent.
"""

import time
from pathlib import Path

import cv2
import numpy as np

from experiments.common import (
    OPENFACE,
    Row,
    annotated,
    box_errors,
    command_line,
    pivot,
    write_results,
)
from jclnf.detect import HaarDetector, MtcnnDetector, find_faces
from jclnf.detect import _mtcnn as mtcnn
from jclnf.geometry import tight_box
from jclnf.tracking import overlap
from jclnf.video import open_source
from tests.support.recordings import box_of, csv_rows

HERE = Path(__file__).resolve().parent

REPEATS = 10
AT_MOST_PX, AT_MOST_SCORE = 0.05, 1e-3


def recorded():
    """Yield what was recorded, where, and the image."""
    for row in csv_rows(OPENFACE / "golden_csv" / "mtcnn_boxes.csv"):
        folder = "samples" if row["image"].startswith("sample") else "images"
        yield row, "images", cv2.imread(str(OPENFACE / folder / row["image"]))
    rows = csv_rows(OPENFACE / "golden_csv" / "start_boxes.csv")
    for video in dict.fromkeys(row["video"] for row in rows):
        frames = {int(row["frame"]): row for row in rows if row["video"] == video}
        for frame in open_source(OPENFACE / "samples" / video).frames():
            if frame.number > max(frames):
                break
            if frame.number in frames:
                yield frames[frame.number], "frames of clips", frame.image


def parity(detector):
    """Rows of the largest differences, and the time of each size of image."""
    box_off, score_off, times = {}, {}, {}
    for row, where, image in recorded():
        boxes, scores = detector.detect(image)
        expected = box_of(row)
        box_off.setdefault(where, []).append(np.abs(boxes[0] - expected).max())
        score_off.setdefault(where, []).append(abs(scores[0] - float(row["confidence"])))
        times.setdefault(image.shape[:2], image)
    rows = [
        Row(name, where, len(off), max(off), at_most=most, unit=unit)
        for name, table, most, unit in (
            ("largest difference of x, y, w or h", box_off, AT_MOST_PX, "px"),
            ("largest difference of the score", score_off, AT_MOST_SCORE, ""),
        )
        for where, off in table.items()
    ]
    return rows, {f"{w} x {h}": spent(detector, p) for (h, w), p in sorted(times.items())}


def spent(detector, image):
    """Least processor time of a few calls in ms, all threads: others on the machine matter less."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        find_faces(detector, image)
        seconds.append(time.process_time() - start)
    return round(1e3 * min(seconds), 1)


def on_annotated(name, detector):
    """Rows of recall and box error on the validation faces."""
    found, others, faces = [], 0, annotated("val")
    for face in faces:
        truth = tight_box(face.landmarks)
        boxes = find_faces(detector, cv2.imread(str(face.image)))
        shared = [overlap(box, truth) for box in boxes]
        hit = bool(shared) and max(shared) > 0.3
        others += len(boxes) - hit
        if hit:
            found.append((truth, boxes[int(np.argmax(shared))], max(shared)))
    truth, boxes, shared = (np.array([f[i] for f in found]) for i in range(3))
    centre, size = box_errors(truth, boxes)
    return [
        Row(quantity, name, len(faces), value, unit=unit)
        for quantity, value, unit in (
            ("recall", 100 * len(found) / len(faces), "%"),
            ("other detections", 100 * others / len(faces), "% of images"),
            ("mean error of the centre", 100 * centre.mean(), "% of the side"),
            ("mean error of the size", 100 * np.abs(size).mean(), "%"),
            ("median of the size", 100 * np.median(size), "% too large"),
            ("mean IoU", shared.mean(), ""),
        )
    ]


def noting_shapes():
    """The shapes that the networks run on from now on: a program is compiled for each."""
    shapes, run = set(), mtcnn.faces

    def noting(network, images, size):
        shapes.add((id(network), images.shape))
        return run(network, images, size)

    mtcnn.faces = noting
    return shapes


def main():
    command_line(__doc__).parse_args()
    shapes = noting_shapes()
    detector = MtcnnDetector(OPENFACE / "model")
    same, times = parity(detector)
    annotated = on_annotated("MTCNN", detector) + on_annotated("Haar", HaarDetector())
    programs = len(shapes)
    body = "\n\n".join(
        [
            pivot(same),
            "On the validation faces (a face is found where a box has IoU over 0.3 with the "
            "landmarks' extent):",
            pivot(annotated),
            "Processor time an image, ms, least of "
            f"{REPEATS}: " + ", ".join(f"{size}: {t}" for size, t in times.items()) + ".",
            f"Programs compiled for all of these images: {programs}.",
        ]
    )
    numbers = {"same": same, "annotated": annotated, "ms": times, "programs": programs}
    write_results(HERE, "Boxes of MTCNN", body, numbers)


if __name__ == "__main__":
    main()
