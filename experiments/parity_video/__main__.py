"""Tracking of faces over frames, beside what OpenFace's programs wrote for the same videos."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

import jclnf
from experiments.common import OPENFACE, Row, grey_frames, model_file, pivot, write_results
from experiments.timing import timed
from experiments.training.trunk.evaluate import openings
from jclnf.detect import HaarDetector
from tests.support.recordings import box_of, csv_rows

HERE = Path(__file__).resolve().parent

TITLE = "Tracking: agreement with OpenFace's programs"
CLIPS = ("default.wmv", "changeLighting.wmv", "subj01_timepoint01.mp4")
TALKING, LONGEST = CLIPS[0], CLIPS[2]
INNER = slice(17, 68)
OUTER_EYES = (36, 45)
GROUPS = {
    "brows": slice(0, 10),
    "bridge of the nose": slice(10, 14),
    "nostrils": slice(14, 19),
    "eyes": slice(19, 31),
    "mouth": slice(31, 51),
}
"""Inner landmarks."""


class Course(NamedTuple):
    """A face over the frames of a video."""

    landmarks: np.ndarray
    """(t, 68, 2)"""
    rotation: np.ndarray
    """(t, 3) pitch, yaw, roll of the weak-perspective pose."""
    success: np.ndarray
    confidence: np.ndarray


def start_box(clip: str) -> np.ndarray:
    """The box that OpenFace's detector found in the first frame."""
    rows = csv_rows(OPENFACE / "golden_csv" / "start_boxes.csv")
    return box_of(next(row for row in rows if row["video"] == clip and row["frame"] == "1"))


def written(name: str) -> Course:
    """The table that OpenFace wrote, with landmarks to 0.1 px."""
    rows = csv_rows(OPENFACE / "golden_csv" / f"{name}.csv")

    def columns(*names: str) -> np.ndarray:
        return np.array([[float(row[name]) for name in names] for row in rows])

    xy = [columns(*(f"{axis}_{i}" for i in range(68))) for axis in "xy"]
    return Course(
        np.stack(xy, axis=-1),
        columns("p_rx", "p_ry", "p_rz"),
        columns("success")[:, 0] == 1,
        columns("confidence")[:, 0],
    )


def followed(tracker: jclnf.Tracker, clip: str) -> Course:
    """The face of a video by a tracker, from OpenFace's box in the first frame."""
    tracker.reset()
    faces = []
    for index, frame in enumerate(grey_frames(clip)):
        (face,) = tracker.step(frame, start_box(clip) if index == 0 else None)
        faces.append(face)
    return Course(
        np.stack([face.result.landmarks for face in faces]),
        np.stack([np.asarray(face.result.pose.rotation) for face in faces]),
        np.array([face.success for face in faces]),
        np.array([np.nan if face.confidence is None else face.confidence for face in faces]),
    )


def apart(a: Course, b: Course) -> np.ndarray:
    """Mean distance of the landmarks in each frame, pixels."""
    return np.linalg.norm(a.landmarks - b.landmarks, axis=-1).mean(axis=1)


def parity_rows() -> list[Row]:
    """OpenFace's model with its parts and validator, single face, against OpenFace's C++."""
    model = jclnf.load_openface(model_file("general"), parts=True, validator=True)
    tracker = jclnf.Tracker(model, jclnf.TrackParams.openface(model), single=True)
    rows = []
    for clip in CLIPS:
        ours = followed(tracker, clip)
        theirs = written(f"{Path(clip).stem}.clnf_general")
        both = ours.success & theirs.success
        distance = apart(ours, theirs)[both]
        turned = np.abs(ours.rotation - theirs.rotation).max(axis=1)[both]
        same = 100 * np.mean(ours.success == theirs.success)
        trust = np.abs(ours.confidence - theirs.confidence)
        n = len(distance)
        rows += [
            Row("frames", clip, n, len(ours.success)),
            Row("mean landmark distance", clip, n, distance.mean(), 0.3, unit="px"),
            Row("mean landmark distance, worst frame", clip, n, distance.max(), unit="px"),
            Row("first frame", clip, 1, distance[0], unit="px"),
            Row("pose rotation, worst frame", clip, n, turned.max(), 0.02, unit="rad"),
            Row("same success", clip, n, same, at_least=98, unit="%"),
            Row("confidence, largest difference", clip, n, trust.max()),
        ]
    return rows


def jitter(landmarks: np.ndarray) -> float:
    """Mean norm of the second difference of landmarks over frames, pixels."""
    second = landmarks[2:] - 2 * landmarks[1:-1] + landmarks[:-2]
    return float(np.linalg.norm(second, axis=-1).mean())


def by_eyes(landmarks: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Inner landmarks less those of the reference, along and across the line between its outer
    eye corners, in parts of its length: (t, 51, 2)."""
    across = reference[:, OUTER_EYES[1]] - reference[:, OUTER_EYES[0]]
    axis = (across[:, 0] + 1j * across[:, 1])[:, None]
    off = (landmarks - reference)[:, INNER]
    turned = (off[..., 0] + 1j * off[..., 1]) / axis
    return np.stack([turned.real, turned.imag], axis=-1)


def accuracy_rows(where: str, landmarks: np.ndarray, reference: np.ndarray) -> list[Row]:
    """Distance from a reference, what of it is the same in all frames, and jitter."""
    off = by_eyes(landmarks, reference)
    constant = off.mean(axis=0)
    n = len(landmarks)
    size = 100 * np.linalg.norm(off, axis=-1).mean()
    fixed = 100 * np.linalg.norm(constant, axis=-1).mean()
    rest = 100 * np.linalg.norm(off - constant, axis=-1).mean()
    lengths = 100 * np.linalg.norm(constant, axis=-1)
    groups = [
        Row(f"of it the same in all frames, {name}", where, n, lengths[at].mean(), unit="%")
        for name, at in GROUPS.items()
    ]
    # The reference is written to 0.1 px, which is jitter too.
    rounded = np.round(landmarks, 1)
    return [
        Row("distance, inner landmarks", where, n, size, 3.0, unit="% of the eye distance"),
        Row("of it the same in all frames, by landmark", where, n, fixed, unit="%"),
        *groups,
        Row("the rest", where, n, rest, unit="%"),
        Row("jitter", where, n, jitter(rounded), jitter(reference), unit="px"),
        Row("jitter of inner landmarks", where, n, jitter(rounded[:, INNER]), unit="px"),
    ]


def opening_rows(where: str, landmarks: np.ndarray, reference: np.ndarray) -> list[Row]:
    """How mouth and lids open over the frames, beside a reference."""
    rows = []
    pairs = zip(("mouth", "lids"), openings(landmarks), openings(reference), strict=True)
    for name, ours, theirs in pairs:
        n, together = len(ours), np.corrcoef(ours, theirs)[0, 1]
        rows += [
            Row(f"opening of the {name}", where, n, ours.mean(), unit="px"),
            Row(
                f"opening of the {name}, more than the reference's",
                where,
                n,
                (ours - theirs).mean(),
                unit="px",
            ),
            Row(f"opening of the {name}, correlation", where, n, together),
        ]
    return rows


def default_rows() -> list[Row]:
    """The bundled model beside OpenFace 2 with CE-CLM: followed, and each frame on its own; and
    beside OpenFace's general model where a mouth moves."""
    reference = written(f"{Path(LONGEST).stem}.openface2_ceclm").landmarks
    cpp = written(f"{Path(LONGEST).stem}.clnf_general").landmarks
    model, frames = jclnf.load_model(), list(grey_frames(LONGEST))
    tracker = jclnf.Tracker(model, single=True)
    ours = followed(tracker, LONGEST).landmarks
    rows = accuracy_rows("bundled model, followed", ours, reference)
    rows += opening_rows("bundled model, followed", ours, reference)
    talking = written(f"{Path(TALKING).stem}.clnf_general")
    moving = followed(tracker, TALKING).landmarks[talking.success]
    rows += opening_rows(f"{TALKING}, followed", moving, talking.landmarks[talking.success])
    boxes = start_box(LONGEST)
    tracker.reset()
    tracker.step(frames[0], boxes)
    taken = [1e3 * timed(lambda frame=frame: tracker.step(frame)) for frame in frames[1:]]
    rows.append(
        Row("time of a frame", "bundled model, followed", len(taken), np.median(taken), unit="ms")
    )

    detector = HaarDetector()
    found = [detector(frame) for frame in frames]
    kept = [i for i, boxes in enumerate(found) if len(boxes)]
    at = "bundled model, each frame on its own"
    images, boxes = [frames[i] for i in kept], np.stack([found[i][0] for i in kept])
    fits = jclnf.fit_images(model, images, boxes)
    rows += accuracy_rows(at, fits.landmarks, reference[kept])
    elapsed = 1e3 * timed(lambda: jclnf.fit_images(model, images, boxes))
    rows.append(Row("time of a frame", at, len(kept), elapsed / len(kept), unit="ms"))

    rows += accuracy_rows("OpenFace's general model, C++", cpp, reference)
    rows.append(
        Row("jitter", "OpenFace 2 CE-CLM, published", len(reference), jitter(reference), unit="px")
    )
    inner = jitter(reference[:, INNER])
    rows.append(
        Row(
            "jitter of inner landmarks",
            "OpenFace 2 CE-CLM, published",
            len(reference),
            inner,
            unit="px",
        )
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("openface", "default"), help="leave the other out")
    only = parser.parse_args().only
    parity = [] if only == "default" else parity_rows()
    default = [] if only == "openface" else default_rows()
    parts = []
    if parity:
        parts.append("## OpenFace's general model, against OpenFace 2.2 C++\n\n" + pivot(parity))
    if default:
        parts.append(f"## {LONGEST} against OpenFace 2 with CE-CLM\n\n" + pivot(default))
    suffix = f"_{only}" if only else ""
    folder = HERE if not only else HERE / f"results{suffix}"
    write_results(folder, TITLE, "\n\n".join(parts), {"openface": parity, "default": default})


if __name__ == "__main__":
    main()
