"""Which landmark makes most of a difference between action units."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jclnf.action_units import ActionUnits, Person, describe_openface, finish

WINDOW = 3
"""Frames before and after one that its class depends on: the majority of these counts."""


class Judged(NamedTuple):
    """A person's action units over the frames of a clip."""

    outputs: np.ndarray
    """`(f, k)` what predictors say of each frame by itself."""
    of_median: np.ndarray
    """`(k,)` what the person's medians take away from that in the end."""
    final: np.ndarray
    """`(f, k)`"""

    @property
    def decisions(self) -> np.ndarray:
        """`(f, k)` outputs less what medians take away."""
        return self.outputs - self.of_median


def judged(model: ActionUnits, images: Sequence[np.ndarray], landmarks: np.ndarray) -> Judged:
    """Action units of all frames of a clip, from landmarks `(f, 68, 2)`."""
    person, kept, kinds = Person(model), [], []
    for image, points in zip(images, landmarks, strict=True):
        units = person.step(describe_openface(model, image, points).descriptor)
        kept.append(units.kept)
        kinds.append(units.kind)
    final = finish(model, np.array(kept), np.array(kinds), person.of_median)
    return Judged(np.array(kept), person.of_median, final)


def zeros(model: ActionUnits, found: Judged) -> np.ndarray:
    """Which output counts as an intensity of 0 in the end, `(n,)`: that of the medians and,
    beyond it, the one that is rare enough."""
    n = len(model.intensities)
    ordered = np.sort(found.outputs[:, :n], axis=0)
    levels = found.of_median[:n].copy()
    for j, (cutoff, dynamic) in enumerate(zip(model.cutoffs, model.dynamic, strict=False)):
        if dynamic and cutoff != -1:
            levels[j] = ordered[int(len(ordered) * cutoff), j]
    return levels


class Cause(NamedTuple):
    """A landmark that makes a part of a difference."""

    landmark: int
    removes: float
    """By how much the output moves if this landmark alone is the recorded one."""
    off: float
    """Pixels from there."""


def cause(
    model: ActionUnits, image: np.ndarray, ours: np.ndarray, theirs: np.ndarray, output: int
) -> Cause:
    """The landmark whose replacement by the recorded one removes most of an output's difference."""

    def value(points: np.ndarray) -> float:
        return float(model.predict(describe_openface(model, image, points).descriptor)[output])

    before = value(ours)
    difference = value(theirs) - before
    moves = []
    for i in range(len(ours)):
        points = ours.copy()
        points[i] = theirs[i]
        moves.append(value(points) - before)
    # Going beyond the recorded output leaves a difference as well.
    best = int(np.abs(difference - np.array(moves)).argmin())
    return Cause(best, moves[best], float(np.linalg.norm(ours[best] - theirs[best])))


class Change(NamedTuple):
    """Frames in a row whose class is another one, and the frame by itself that is most of it."""

    name: str
    first: int
    last: int
    frame: int
    theirs: float
    """The output there that decides, of the recorded landmarks and medians."""
    ours: float
    by_medians: float
    """Part of the difference that comes from the medians."""
    cause: Cause


def changes(
    model: ActionUnits,
    images: Sequence[np.ndarray],
    landmarks: tuple[np.ndarray, np.ndarray],
    found: tuple[Judged, Judged],
) -> Iterator[Change]:
    """Each change of a class, ours and then theirs in each pair."""
    ours, theirs = found
    for output in range(len(model.intensities), len(model.columns)):
        differ = np.flatnonzero(ours.final[:, output] != theirs.final[:, output])
        mine, recorded = ours.decisions[:, output], theirs.decisions[:, output]
        for run in np.split(differ, np.flatnonzero(np.diff(differ) > 1) + 1):
            if not len(run):
                continue
            near = np.arange(max(run[0] - WINDOW, 0), min(run[-1] + WINDOW + 1, len(mine)))
            turned = near[(mine[near] > 0) != (recorded[near] > 0)]
            frame = int(turned[np.abs(mine - recorded)[turned].argmax()])
            points = (both[frame] for both in landmarks)
            yield Change(
                model.columns[output],
                int(run[0]) + 1,
                int(run[-1]) + 1,
                frame + 1,
                float(recorded[frame]),
                float(mine[frame]),
                float(theirs.of_median[output] - ours.of_median[output]),
                cause(model, images[frame], *points, output),
            )
