"""Measure how the boxes of OpenCV's face cascade relate to landmark boxes, and how good they are.

On the training people: the linear correction from one to the other, as medians. On the validation
people, with the correction that the package has: recall and box error, upright and tilted.
"""

import csv
import json
import os
import platform
import time
from pathlib import Path

import cv2
import numpy as np

import jclnf.detect.haar as haar
from jclnf.images import read_image

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("JCLNF_TEST_DATA", HERE.parents[1].parent / "shared")) / "faces"
IDENTITY = (0.0, 0.0, 1.0, 1.0)


def faces(split):
    with open(DATA / "landmarks.csv", newline="") as f:
        for row in csv.DictReader(f):
            if row["split"] == split:
                points = [(float(row[f"x_{i}"]), float(row[f"y_{i}"])) for i in range(68)]
                yield row["image"], np.array(points)


def extent(points):
    return np.concatenate([points.min(0), np.ptp(points, axis=0)])


def iou(a, b):
    size = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.maximum(size, 0))
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def tilted(image, points, degrees):
    """Turn an image about its centre on a canvas of the same size; the border stays visible."""
    h, w = image.shape
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (w, h), borderMode=cv2.BORDER_REPLICATE)
    return turned, points @ matrix[:, :2].T + matrix[:, 2]


def search(split, degrees=0.0, correction=IDENTITY, min_score=haar.MIN_SCORE):
    """Return per face the landmark box and the best detection's, how many others, and scores."""
    detector = haar.HaarDetector()
    found, missed, others, scores, other_scores, seconds = [], 0, 0, [], [], []
    old = haar.CORRECTION, haar.MIN_SCORE
    haar.CORRECTION, haar.MIN_SCORE = correction, min_score
    try:
        for name, points in faces(split):
            image = read_image(DATA / "images" / name)
            if degrees:
                image, points = tilted(image, points, degrees)
            truth = extent(points)
            start = time.perf_counter()
            boxes, score = detector.detect(image)
            seconds.append(time.perf_counter() - start)
            overlap = [iou(b, truth) for b in boxes]
            best = int(np.argmax(overlap)) if overlap and max(overlap) > 0.3 else None
            others += len(boxes) - (best is not None)
            other_scores += [s for i, s in enumerate(score) if i != best]
            missed += best is None
            if best is not None:
                found.append((truth, boxes[best]))
                scores.append(score[best])
    finally:
        haar.CORRECTION, haar.MIN_SCORE = old
    return np.array(found), missed, others, (scores, other_scores), np.median(seconds)


def report(found, missed, others):
    truth, box = found[:, 0], found[:, 1]
    side = truth[:, 2:].mean(axis=1)
    centre = np.linalg.norm((box - truth)[:, :2] + (box - truth)[:, 2:] / 2, axis=1) / side
    size = np.log(np.sqrt(box[:, 2] * box[:, 3] / (truth[:, 2] * truth[:, 3])))
    return {
        "faces": len(found) + missed,
        "recall": round(len(found) / (len(found) + missed), 4),
        "other detections per image": round(others / (len(found) + missed), 4),
        "centre error, mean, in sides": round(float(centre.mean()), 4),
        "size error, mean of |log|": round(float(np.abs(size).mean()), 4),
        "size bias, median of log": round(float(np.median(size)), 4),
        "iou, mean": round(float(np.mean([iou(t, b) for t, b in found])), 4),
    }


def below(scores):
    return round(float(np.mean(np.array(scores) < haar.MIN_SCORE)), 4)


def main():
    found, missed, others, (scores, other_scores), _ = search("train", min_score=-np.inf)
    truth, box = found[:, 0], found[:, 1]
    shift = np.median((truth[:, :2] - box[:, :2]) / box[:, 2:], axis=0)
    scale = np.median(truth[:, 2:] / box[:, 2:], axis=0)
    fitted = (*(round(float(v), 4) for v in (*shift, *scale)),)
    results = {
        "correction": fitted,
        "correction in the package": haar.CORRECTION,
        "min score in the package": haar.MIN_SCORE,
        "train, no min score": report(found, missed, others),
        "train, part of the faces under min score": below(scores),
        "train, part of the other detections under min score": below(other_scores),
    }
    found, missed, others, *_ = search("val")
    results["val, before correction"] = report(found, missed, others)
    found, missed, others, _, seconds = search("val", correction=fitted)
    results["val"] = report(found, missed, others)
    results["val, ms per image"] = round(1e3 * float(seconds), 1)
    for degrees in (20.0, -20.0, 35.0, -35.0):
        found, missed, others, *_ = search("val", degrees, fitted)
        results[f"val, tilted {degrees:+g} degrees"] = report(found, missed, others)
    results["versions"] = {"opencv": cv2.__version__, "python": platform.python_version()}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
