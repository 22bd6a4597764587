"""A person's action units over the frames of a video, as OpenFace's program tells them."""

from typing import NamedTuple

import numpy as np

from jclnf.action_units._medians import RunningMedians
from jclnf.action_units._model import APPEARANCE, HIGHEST, ActionUnits
from jclnf.action_units._openface import Described

KEPT = 3000
"""Frames in which a person was seen that are judged again once all have come."""

FAILED, FINAL, AGAIN = 0, 1, 2
"""What a number that is kept of a frame is: none, as it stays, or to be judged again."""


class FrameUnits(NamedTuple):
    """A person's action units in a frame."""

    shown: np.ndarray
    """`(k,)` intensities and classes as far as they can be told so far; zeros if the person was not
    seen. Intensities are not limited yet, they may be below 0."""
    kept: np.ndarray
    """`(k,)` what `finish` makes the final ones of; zeros if the person was not seen."""
    kind: int
    """Which of `FAILED`, `FINAL`, `AGAIN` that is."""
    described: Described | None = None
    """What they were told by, from `People`."""


class Person:
    """What is known of a person: the medians of the numbers that describe the face.

    Args:
        model: the predictors.
        live: correct what is shown at once, by what was rare so far, for a camera.
    """

    def __init__(self, model: ActionUnits, *, live: bool = False) -> None:
        self._model = model
        size = len(model.weights)
        self._frames = self._seen = 0
        self._appearance = RunningMedians(APPEARANCE, 1000, -0.005, 1.0)
        self._geometry = RunningMedians(size - APPEARANCE, 10_000, -60.0, 60.0)
        self._median = np.zeros(size)
        self._of_median = np.zeros(model.weights.shape[1])
        self._correction = _LiveCorrection(len(model.intensities)) if live else None

    @property
    def of_median(self) -> np.ndarray:
        """What the medians so far take away from each output, `(k,)`."""
        return self._of_median

    def step(self, descriptor: np.ndarray | None) -> FrameUnits:
        """The person in the next frame.

        Args:
            descriptor: `(d,)`; None if the person was not seen.
        """
        model = self._model
        self._frames += 1
        if model.uses_medians and self._frames % 2 == 1:
            self._update(descriptor)
        if descriptor is None:
            nothing = np.zeros_like(self._of_median)
            return FrameUnits(nothing, nothing, FAILED)
        alone = model.predict(descriptor)
        outputs = alone - self._of_median
        n = len(model.intensities)
        intensities = outputs[:n]
        if self._correction is not None:
            intensities = self._correction.corrected(intensities)
        shown = np.concatenate([intensities, model.classified(outputs[n:])])
        self._seen += 1
        if model.uses_medians and self._seen <= KEPT:
            return FrameUnits(shown, alone, AGAIN)
        return FrameUnits(shown, outputs, FINAL)

    def _update(self, descriptor: np.ndarray | None) -> None:
        """Take a frame into the medians, as OpenFace does with every second one."""
        parts = []
        for medians, part in (
            (self._appearance, slice(None, APPEARANCE)),
            (self._geometry, slice(APPEARANCE, None)),
        ):
            if descriptor is not None:
                medians.add(descriptor[part])
            if medians.numbers == 1:
                only = np.zeros_like(self._median) if descriptor is None else descriptor
                parts.append(only[part])
            else:
                parts.append(medians.medians())
        parts[0] = np.maximum(parts[0], 0.0)
        self._median = np.concatenate(parts)
        self._of_median = self._model.of_median(self._median)

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` goes on from, in arrays of plain types."""
        counters = np.array([self._frames, self._seen], np.int64)
        state = {"counters": counters, "median": self._median}
        for name, part in self._parts().items():
            state |= {f"{name}_{key}": array for key, array in part.state().items()}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, exactly."""
        self._frames, self._seen = (int(number) for number in state["counters"])
        self._median = state["median"]
        self._of_median = self._model.of_median(self._median)
        for name, part in self._parts().items():
            start = f"{name}_"
            part.restore({k[len(start) :]: v for k, v in state.items() if k.startswith(start)})

    def _parts(self) -> "dict[str, RunningMedians | _LiveCorrection]":
        parts: dict[str, RunningMedians | _LiveCorrection] = {
            "appearance": self._appearance,
            "geometry": self._geometry,
        }
        return parts | ({} if self._correction is None else {"live": self._correction})


class _LiveCorrection:
    """What is taken away from a camera's intensities: the value below which a tenth of those so far
    were, from histograms."""

    _BINS, _LOW, _LENGTH = 200, -3.0, 8.0
    _PART, _LEAST = 0.10, 10

    def __init__(self, count: int) -> None:
        self._histogram = np.zeros((count, self._BINS), np.int64)
        self._frames = 0

    def corrected(self, values: np.ndarray) -> np.ndarray:
        """Take in a frame's intensities, and correct them."""
        scaled = (values - self._LOW) * self._BINS / self._LENGTH
        at = np.clip(scaled, 0, self._BINS - 1).astype(np.int64)
        self._histogram[np.arange(len(values)), at] += 1
        self._frames += 1
        rare = 0.0
        if self._frames >= self._LEAST:
            over = self._histogram.cumsum(1) > int(self._PART * self._frames)
            rare = self._LOW + over.argmax(1) * (self._LENGTH / self._BINS)
        return np.clip(values - rare, 0.0, HIGHEST)

    def state(self) -> dict[str, np.ndarray]:
        return {"histogram": self._histogram, "frames": np.array(self._frames)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._histogram, self._frames = state["histogram"].copy(), int(state["frames"])


def finish(
    model: ActionUnits, kept: np.ndarray, kinds: np.ndarray, of_median: np.ndarray
) -> np.ndarray:
    """A person's action units once all frames have come: judged again by the medians of the whole,
    shifted so that rare intensities count from 0, limited, and smoothed.

    Args:
        model: the predictors.
        kept: `(f, k)` what `Person.step` said is to be kept of each frame.
        kinds: `(f,)` of which kind that is.
        of_median: `(k,)` the person's at the end.

    Returns:
        `(f, k)` intensities from 0 to 5, and classes 0 or 1.
    """
    final = np.empty(kept.shape)
    for output in range(kept.shape[1]):
        column = kept[:, output]
        final[:, output] = finish_output(model, output, column, kinds, of_median[output])
    return final


def finish_output(
    model: ActionUnits, output: int, kept: np.ndarray, kinds: np.ndarray, of_median: float
) -> np.ndarray:
    """One output of `finish`, `(f,)`: of a long video, all of them at once take much memory."""
    seen = kinds != FAILED
    values = np.where(kinds == AGAIN, kept - of_median, kept)
    n = len(model.intensities)
    if output >= n:
        classes = np.where(seen, model.classified(values, output - n), 0.0)
        present = np.where(_averaged(classes, 7) >= 0.5, 1.0, 0.0)
        present[:3], present[-3:] = classes[:3], classes[-3:]
        return present
    cutoff = model.cutoffs[output]
    if model.dynamic[output] and cutoff != -1 and seen.any():
        ordered = np.sort(values[seen])
        values -= ordered[int(len(ordered) * cutoff)]
    return _averaged(np.where(seen, np.clip(values, 0.0, HIGHEST), 0.0), 3)


def _averaged(values: np.ndarray, window: int) -> np.ndarray:
    """The moving average `(f,)` over an odd number of values; where it would reach beyond the ends,
    they stay as they are."""
    half, averaged = window // 2, values.copy()
    if len(values) >= window:
        stretches = np.lib.stride_tricks.sliding_window_view(values, window)
        averaged[half:-half] = stretches.sum(-1) / window
    return averaged
