"""What action units are worth that the bundled model's landmarks drive, as they are and moved to
OpenFace's convention.

    python -m experiments.action_units.bundled

OpenFace's predictors take OpenFace's landmarks for granted. A linear map from the bundled model's
landmarks to those is learned here by ridge regression, in a frame that turns and sizes faces alike,
from photographs that both models fit; how strongly it is held back is chosen by photographs that
are left out. Judged by two clips of other people: correlation over time with what OpenFace's
program wrote. Needs the development data.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import jclnf
from experiments.action_units.commands import (
    CLIPS,
    MOVES,
    PREDICTORS,
    RECORDED,
    colour_frames,
    correlation,
    read,
    recorded_landmarks,
)
from experiments.action_units.tracing import judged
from experiments.common import (
    DATA,
    Row,
    command_line,
    disturbed_box,
    model_file,
    pivot,
    table,
    write_results,
)
from experiments.parity_video.__main__ import followed
from jclnf.action_units import load_action_units
from jclnf.annotations import read_annotations
from jclnf.geometry import apply_similarity, invert_similarity, similarity_between
from jclnf.images import read_image
from jclnf.runtime import use_all_cores

HERE = Path(__file__).resolve().parent / "bundled"

FACES = 700
"""Of each source of images."""
LEFT_OUT = 5
"""Each so-many-th face chooses the strength."""
STRENGTHS = tuple(10.0**k for k in range(-3, 5))
TRUSTED = 0.8
"""Confidence of the fits that are learned from."""
AGREED = 0.06
"""Mean distance of both models' landmarks, in sizes of the face, beyond which one has lost it."""
ENOUGH = 0.9
"""Correlation over time of an action unit that is worth something."""


class LinearMap(NamedTuple):
    """Landmarks by one convention from those by another, linear in the face's own frame."""

    mean: np.ndarray
    """`(n, 2)` the frame's face: mean landmarks by the first convention, of size 1."""
    offset: np.ndarray
    """`(2 n,)`"""
    matrix: np.ndarray
    """`(2 n, 2 n)`"""

    def __call__(self, landmarks: np.ndarray) -> np.ndarray:
        """Landmarks `(n, 2)` by the second convention."""
        centred, back = _framed(self.mean, landmarks)
        moved = self.offset + (centred - self.mean).reshape(-1) @ self.matrix
        return landmarks + apply_similarity(back, moved.reshape(-1, 2))


def _framed(mean: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks turned and sized as the mean ones, about their own middle; and the way back."""
    there = similarity_between(landmarks, mean)
    centred = apply_similarity(there, landmarks - landmarks.mean(0))
    return centred, invert_similarity(there)


def sized(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks about their middle, their root mean square distance from it 1."""
    centred = landmarks - landmarks.mean(0)
    return centred / np.sqrt((centred**2).sum(1).mean())


def learn(one: np.ndarray, other: np.ndarray, strength: float) -> LinearMap:
    """The map from one convention to another, of pairs `(f, n, 2)`."""
    mean = sized(one[0])
    for _ in range(5):
        mean = sized(np.mean([_framed(mean, points)[0] for points in one], axis=0))
    inputs, moves = [], []
    for points, wanted in zip(one, other, strict=True):
        centred, _ = _framed(mean, points)
        inputs.append((centred - mean).reshape(-1))
        there = similarity_between(points, mean)
        moves.append(apply_similarity(there, wanted - points).reshape(-1))
    x, y = np.array(inputs), np.array(moves)
    about = x.mean(0)
    normal = (x - about).T @ (x - about) + strength * np.eye(x.shape[1])
    matrix = np.linalg.solve(normal, (x - about).T @ (y - y.mean(0)))
    return LinearMap(mean, y.mean(0) - about @ matrix, matrix)


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean distance of landmarks in sizes of the face, `(f,)`."""
    size = np.sqrt(((one - one.mean(1, keepdims=True)) ** 2).sum(2).mean(1))
    return np.linalg.norm(one - other, axis=2).mean(1) / size


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of the same faces by the bundled model and by OpenFace's, `(f, 68, 2)`."""
    rng = np.random.default_rng(0)
    chosen = []
    for source in ("photographs", "faces"):
        faces = read_annotations(DATA / source / "landmarks.csv", split="train")
        chosen += [faces[i] for i in rng.permutation(len(faces))[:FACES]]
    images = [read_image(face.image) for face in chosen]
    boxes = np.array([disturbed_box(face, rng) for face in chosen])
    openface = jclnf.load_openface(model_file("general"), parts=True, validator=True)
    fits = [jclnf.fit_images(model, images, boxes) for model in (jclnf.load_model(), openface)]
    one, other = (np.asarray(fit.landmarks, np.float64) for fit in fits)
    trusted = np.all([np.asarray(fit.success) for fit in fits], axis=0)
    trusted &= np.asarray(fits[1].confidence) >= TRUSTED
    trusted &= apart(other, one) < AGREED
    return one[trusted], other[trusted]


def learned() -> tuple[LinearMap, list[Row]]:
    """The map, and how well it does on the faces that were left out."""
    one, other = pairs()
    out = np.arange(len(one)) % LEFT_OUT == 0

    def error(strength: float) -> float:
        by = learn(one[~out], other[~out], strength)
        return float(apart(other[out], np.array([by(points) for points in one[out]])).mean())

    errors = {strength: error(strength) for strength in STRENGTHS}
    best = min(errors, key=errors.__getitem__)
    plain = learn(one[~out], other[~out], 1e12)
    moved = np.array([plain(points) for points in one[out]])
    where, count = "photographs left out", int(out.sum())
    rows = [
        Row("faces learned from", where, count, int((~out).sum())),
        Row("landmarks apart, of a face's size", where, count,
            100 * float(apart(other[out], one[out]).mean()), unit="%"),
        Row("moved by the mean difference", where, count,
            100 * float(apart(other[out], moved).mean()), unit="%"),
        Row("moved by the linear map", where, count, 100 * errors[best], unit="%"),
        Row("strength of the ridge", where, count, best),
    ]  # fmt: skip
    return learn(one, other, best), rows


def main() -> None:
    """Measure, and write the results."""
    command_line(str(__doc__)).parse_args()
    use_all_cores(32)
    jclnf.enable_compilation_cache()
    by, of_map = learned()
    units = load_action_units(PREDICTORS)
    n = len(units.intensities)
    tracker = jclnf.Tracker(jclnf.load_model(), single=True)
    rows: list[Row] = []
    cells: dict[str, list[str]] = {name: [name] for name in units.intensities}
    header = ["intensity"]
    for clip in CLIPS:
        images = list(colour_frames(clip))
        expected = read(RECORDED / f"FeatureExtraction_dyn_{clip}.csv", units.columns).units
        own = np.asarray(followed(tracker, f"{clip}.wmv").landmarks, np.float64)
        moved = np.array([by(points) for points in own])
        theirs = recorded_landmarks(clip)
        moving = np.flatnonzero(expected[:, :n].std(0) >= MOVES)
        for label, points in (("as they are", own), ("moved", moved)):
            found = judged(units, images, points.astype(np.float32)).final
            header.append(f"{clip}: {label}")
            together = {}
            for j, name in enumerate(units.intensities):
                varies = found[:, j].std() > 0
                r = correlation(found[:, j], expected[:, j]) if varies else 0.0
                if j in moving:
                    together[name] = r
                cells[name].append(f"{r:.3f}" if j in moving else "")
            enough = sum(r > ENOUGH for r in together.values())
            distance = 100 * float(apart(theirs.astype(np.float64), points).mean())
            rows += [
                Row(f"landmarks apart, of a face's size, {label}", clip, len(own), distance,
                    unit="%"),
                Row(f"moving AUs that correlate by over {ENOUGH}, {label}", clip, len(moving),
                    100 * enough / len(moving), unit="%"),
                Row(f"median correlation of moving AUs, {label}", clip, len(moving),
                    float(np.median(list(together.values())))),
                Row(f"intensity, mean difference of moving AUs, {label}", clip, len(moving),
                    float(np.abs(found - expected)[:, moving].mean())),
                Row(f"classes equal, all AUs, {label}", clip, len(own),
                    100 * float((found[:, n:] == expected[:, n:]).mean()), unit="%"),
            ]  # fmt: skip
    body = "\n\n".join(
        [
            pivot(of_map),
            pivot(rows),
            "Correlations over time of intensities that move:",
            table(header, list(cells.values())),
        ]
    )
    title = "Action units by the bundled model's landmarks"
    write_results(HERE, title, body, {"map": of_map, "rows": rows})


if __name__ == "__main__":
    main()
