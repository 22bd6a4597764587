"""Measure how the boxes of OpenCV's face cascades relate to landmark boxes, and how good they are.

On the training people: the linear corrections from one to the other, as medians. On the validation
people, with the corrections that the package has: recall and box error, upright and tilted, with
and without the cascade for turned faces; what is found where there is no face; and the time.
"""

import json
import platform
import time
from pathlib import Path

import cv2
import numpy as np

import jclnf.detect._haar as haar
from experiments.common import annotated, box_errors, command_line, grey_frames
from jclnf.geometry import tight_box
from jclnf.images import read_image
from jclnf.tracking import overlap

HERE = Path(__file__).resolve().parent
IDENTITY = (0.0, 0.0, 1.0, 1.0)
TURNED = 0.4
"""How far the tip of the nose of a turned face is off the middle, in halves of the face's width."""
PROFILE_STEP = 3
"""Of the training faces every third is searched with the slow cascade."""
REPEATS = 5


def turn(points):
    """The tip of the nose, from -1 at the left end of the face to 1 at the right."""
    x, _, width, _ = tight_box(points)
    return 2 * (points[30, 0] - x) / width - 1


def tilted(image, points, degrees):
    """Turn an image about its centre on a canvas of the same size; the border stays visible."""
    h, w = image.shape
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (w, h), borderMode=cv2.BORDER_REPLICATE)
    return turned, points @ matrix[:, :2].T + matrix[:, 2]


class Setting:
    """The package with other corrections and least scores for a while."""

    def __init__(self, **values):
        self.values = values

    def __enter__(self):
        self.old = {name: getattr(haar, name) for name in self.values}
        vars(haar).update(self.values)

    def __exit__(self, *_):
        vars(haar).update(self.old)


class Search:
    """The detections in all images of a split, each face's best one told from the others."""

    def __init__(self, split, degrees=0.0, profiles="if none"):
        detector = haar.HaarDetector(profiles=profiles)
        self.truth, self.boxes, self.scores, self.turns = [], [], [], []
        for face in annotated(split):
            image, points = read_image(face.image), face.landmarks
            if degrees:
                image, points = tilted(image, points, degrees)
            boxes, scores = detector.detect(image)
            self.truth.append(tight_box(points))
            self.turns.append(abs(turn(points)))
            self.boxes.append(boxes)
            self.scores.append(scores)

    def matched(self, *, profiles=True):
        """Per face (truth, box or None, score); and the scores of all other detections."""
        matched, others = [], []
        for truth, boxes, scores in zip(self.truth, self.boxes, self.scores, strict=True):
            # The frontal cascade's scores are far above those of the other one.
            use = scores >= (-np.inf if profiles else 20)
            boxes, scores = boxes[use], scores[use]
            shared = [overlap(box, truth) for box in boxes]
            best = int(np.argmax(shared)) if shared and max(shared) > 0.3 else None
            found = (None, None) if best is None else (boxes[best], scores[best])
            matched.append((truth, *found))
            others += [s for i, s in enumerate(scores) if i != best]
        return matched, others

    def report(self, **options):
        matched, others = self.matched(**options)
        found = [(truth, box) for truth, box, _ in matched if box is not None]
        turned = [m for m, t in zip(matched, self.turns, strict=True) if t > TURNED]
        return {
            "faces": len(matched),
            "recall": rounded(len(found) / len(matched)),
            "turned faces": len(turned),
            "recall of turned faces": rounded(np.mean([box is not None for _, box, _ in turned])),
            "other detections per image": rounded(len(others) / len(matched)),
            **errors(*np.array(found).swapaxes(0, 1)),
        }


def errors(truth, box):
    centre, size = box_errors(truth, box)
    return {
        "centre error, mean, in sides": rounded(centre.mean()),
        "size error, mean of |log|": rounded(np.abs(size).mean()),
        "size bias, median of log": rounded(np.median(size)),
        "iou, mean": rounded(np.mean([overlap(t, b) for t, b in zip(truth, box, strict=True)])),
    }


def rounded(value):
    return round(float(value), 4)


def correction(truth, box):
    shift = np.median((truth[:, :2] - box[:, :2]) / box[:, 2:], axis=0)
    scale = np.median(truth[:, 2:] / box[:, 2:], axis=0)
    return [rounded(v) for v in (*shift, *scale)]


def frontal_rule():
    """The correction of the frontal cascade's boxes, on all training faces."""
    with Setting(CORRECTION=IDENTITY, MIN_SCORE=-np.inf):
        search = Search("train", profiles="never")
    matched, others = search.matched()
    found = [m for m in matched if m[1] is not None]
    truth, box = (np.array([m[i] for m in found]) for i in (0, 1))
    return {
        "correction": correction(truth, box),
        "correction in the package": haar.CORRECTION,
        "min score in the package": haar.MIN_SCORE,
        "train, no min score": search.report(),
        "train, part of the faces under min score": below([m[2] for m in found], haar.MIN_SCORE),
        "train, part of the other detections under min score": below(others, haar.MIN_SCORE),
    }


def profile_rule():
    """The correction of the profile cascade's boxes, on training faces turned as it wants them."""
    cascade = haar.Native(haar._load_cascade, haar.PROFILE_CASCADE)
    truth, boxes, scores, others = [], [], [], []
    for one in annotated("train")[::PROFILE_STEP]:
        image, points = read_image(one.image), one.landmarks
        if turn(points) > 0:
            image = np.ascontiguousarray(image[:, ::-1])
            points = points * (-1, 1) + (image.shape[1] - 1, 0)
        face = tight_box(points)
        for box, score in haar._search(cascade, image, haar._PROFILE_MIN_FACE * max(image.shape)):
            if overlap(box, face) <= 0.3:
                others.append(score)
            elif turn(points) < -TURNED:
                truth.append(face)
                boxes.append(box)
                scores.append(score)
    truth, boxes = np.array(truth), np.array(boxes)
    rule = haar.PROFILE_CORRECTION
    return {
        "correction": correction(truth, boxes),
        "correction in the package": rule,
        "min score in the package": haar.PROFILE_MIN_SCORE,
        "train, turned faces found": len(truth),
        "train, before correction": errors(truth, boxes),
        "train, after correction": errors(truth, np.array([haar.correct(b, rule) for b in boxes])),
        "train, part of the faces under min score": below(scores, haar.PROFILE_MIN_SCORE),
        "train, part of the other detections under min score": below(
            others, haar.PROFILE_MIN_SCORE
        ),
    }


def below(scores, least):
    return rounded(np.mean(np.array(scores) < least))


def backgrounds():
    """Detections in the parts of the validation images on the four sides of a face."""
    detector = haar.HaarDetector()
    areas, frontal, profile = 0, 0, 0
    for face in annotated("val"):
        image = read_image(face.image)
        x, y, w, h = tight_box(face.landmarks)
        left, right = max(0, int(x - 0.3 * w)), int(x + 1.3 * w)
        top, bottom = max(0, int(y - 0.5 * h)), int(y + 1.2 * h)
        for area in (image[:, :left], image[:, right:], image[:top], image[bottom:]):
            if min(area.shape) >= 40:
                _, scores = detector.detect(np.ascontiguousarray(area))
                areas += 1
                frontal += np.sum(scores >= 20)
                profile += np.sum(scores < 20)
    return {
        "areas": areas,
        "frontal and tilted detections": int(frontal),
        "detections more by profiles": int(profile),
    }


def times():
    """Processor time in ms, one thread, on a frame of a clip; a ratio is what to look at."""
    grey = next(grey_frames("default.wmv"))
    # Textured, and no face.
    empty = cv2.GaussianBlur(np.random.default_rng(0).normal(128, 300, grey.shape), (0, 0), 4)
    empty = np.clip(empty, 0, 255).astype(np.uint8)
    large = max(grey.shape) / 11  # what a tracker looks for between its full searches
    detectors = {
        "frontal only": haar.HaarDetector(profiles="never"),
        "default": haar.HaarDetector(),
        "profiles always": haar.HaarDetector(profiles="always"),
        "from an 11th of the longer side": haar.HaarDetector(min_face=large),
        "from an 11th, frontal only": haar.HaarDetector(min_face=large, profiles="never"),
    }
    cv2.setNumThreads(1)
    found = {"frame": list(grey.shape[::-1])}
    for kind, image in (("a face", grey), ("no face", empty)):
        for name, detector in detectors.items():
            assert (len(detector(image)) > 0) == (kind == "a face")
            start = time.process_time()
            for _ in range(REPEATS):
                detector(image)
            found[f"{kind}, {name}"] = round(1e3 * (time.process_time() - start) / REPEATS, 1)
    return found


def main():
    command_line(__doc__).parse_args()
    results = {"frontal": frontal_rule(), "profile": profile_rule()}
    with Setting(CORRECTION=IDENTITY):
        results["val, before correction"] = Search("val", profiles="never").report()
    for degrees in (0.0, 20.0, -20.0, 35.0, -35.0):
        search = Search("val", degrees)
        where = f"val, tilted {degrees:+g} degrees" if degrees else "val"
        results[f"{where}, frontal only"] = search.report(profiles=False)
        results[where] = search.report()
    results["val, profiles always"] = Search("val", profiles="always").report()
    results["beside the faces of val"] = backgrounds()
    results["processor time, ms"] = times()
    results["versions"] = {"opencv": cv2.__version__, "python": platform.python_version()}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
