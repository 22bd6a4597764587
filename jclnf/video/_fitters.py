"""The faces of each frame, by a tracker, or by fits that know nothing of each other.

Both kinds have `fit_frames`, and `state` and `restore` for checkpoints.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jclnf.detect import Detector, find_faces
from jclnf.errors import JclnfError
from jclnf.fitting import fit_images, padded
from jclnf.tracking import (
    SAME_FACE,
    Scenes,
    TrackedFace,
    Tracker,
    assign,
    box_of,
    grey_of,
    overlap,
    tracked_face,
    usable,
)
from jclnf.video._source import Frame


class TrackingFitter:
    """Fits each frame from the one before, by a tracker; the default.

    Args:
        tracker: the tracker.
        boxes: given boxes by the numbers of their frames.
    """

    def __init__(self, tracker: Tracker, boxes: dict[int, Any]) -> None:
        self._tracker, self._boxes = tracker, boxes
        self.cut = False
        """Whether the frame that came last is the first one after a cut."""

    def fit_frames(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[TrackedFace]]]:
        """Each frame as it comes with its faces; none of one that could not be read."""
        for frame in frames:
            faces: list[TrackedFace] = []
            self.cut = False
            if frame.image is not None:
                faces = self._tracker.step(frame.image, self._boxes.get(frame.number))
                self.cut = self._tracker.cut
            yield frame, faces

    def state(self) -> dict[str, np.ndarray]:
        """See `Tracker.state`."""
        return self._tracker.state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Tracker.restore`."""
        self._tracker.restore(state)


class IndependentFitter:
    """Fits each frame from the boxes that a detector finds in it.

    A chunk's faces are fitted as batches over all of JAX's devices. A face has the number of the
    one that was last seen in its place, up to `WITHIN` frames before and not beyond a cut. Nothing
    carries over but those, so errors do not either; but each frame costs a detection, and landmarks
    are less steady than a tracker's.

    Args:
        model: as for `jclnf.fit`.
        params: settings of the fits.
        detector: finds the faces.
        most: most faces of a frame.
        min_face: side in pixels of the smallest face looked for, see `jclnf.detect.find_faces`.
        cuts: see `Tracker`.
    """

    BATCH = 16
    """Faces fitted at a time; batches are filled up, so that nothing is compiled twice."""
    WITHIN = 30
    """Frames for which the number of a face is kept while it is not seen."""

    def __init__(
        self,
        model: Any,
        params: Any,
        detector: Detector,
        most: int | None,
        *,
        min_face: float | None = None,
        cuts: bool = True,
    ) -> None:
        self._model, self._params, self._detector, self._most = model, params, detector, most
        self._min_face = min_face
        self.cut = False
        """As of `TrackingFitter`."""
        self._last: dict[int, tuple[np.ndarray, int]] = {}
        self._next = self._frame = 0
        self._scenes = Scenes(cuts)

    def fit_frames(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[TrackedFace]]]:
        """All the frames with their faces, once the last of them has come."""
        chunk = list(frames)
        jobs: list[tuple[np.ndarray, np.ndarray]] = []
        counts = []
        for frame in chunk:
            boxes: list[np.ndarray] = []
            if frame.image is not None:
                found = find_faces(self._detector, frame.image, min_face=self._min_face)
                boxes = [box for box in found if usable(box, frame.image.shape)][: self._most]
            grey = grey_of(frame.image) if boxes else np.zeros((0, 0))
            jobs += [(grey, box) for box in boxes]
            counts.append(len(boxes))
        results: list[Any] = []
        for first in range(0, len(jobs), self.BATCH):
            part = jobs[first : first + self.BATCH]
            images, given = zip(*padded(part, self.BATCH), strict=True)
            together = fit_images(self._model, images, np.array(given), self._params)
            results += [jax.tree.map(lambda a, i=i: a[i], together) for i in range(len(part))]
        queue = iter(results)
        for frame, count in zip(chunk, counts, strict=True):
            faces = [next(queue) for _ in range(count)]
            self.cut = False
            yield frame, [] if frame.image is None else self._numbered(grey_of(frame.image), faces)

    def _numbered(self, grey: np.ndarray, results: list[Any]) -> list[TrackedFace]:
        self._scenes.look(grey)
        self._frame += 1
        boxes = [box_of(result) for result in results]
        before = [n for n, (_, seen) in self._last.items() if seen >= self._frame - self.WITHIN]
        overlaps = [[overlap(box, self._last[number][0]) for number in before] for box in boxes]
        table = np.array(overlaps).reshape(len(boxes), len(before))
        pairs = assign(np.where(table >= SAME_FACE / 2, table, 0.0))
        numbers = {face: before[known] for face, known in pairs}
        faces = []
        for i, result in enumerate(results):
            face = tracked_face(numbers.get(i, -1), result, detected=True)
            other = i in numbers and face.success and self._is_other(face, grey)
            if i not in numbers or other:
                self.cut = self.cut or other
                face = dataclasses.replace(face, id=self._next)
                self._next += 1
            if face.success:
                self._is_other(face, grey)
            faces.append(face)
        known = {} if self.cut else {number: self._last[number] for number in before}
        self._last = known | {face.id: (face.box, self._frame) for face in faces if face.success}
        self._scenes.keep(set(self._last))
        return sorted(faces, key=lambda face: face.id)

    def _is_other(self, face: TrackedFace, grey: np.ndarray) -> bool:
        return self._scenes.is_other(face.id, grey, face.box)

    def state(self) -> dict[str, np.ndarray]:
        """As `Tracker.state`."""
        return {
            "ids": np.array(list(self._last), np.int64),
            "boxes": np.array([box for box, _ in self._last.values()], np.float64).reshape(-1, 4),
            "seen": np.array([frame for _, frame in self._last.values()], np.int64),
            "next": np.array([self._next, self._frame], np.int64),
            **self._scenes.state(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """As `Tracker.restore`."""
        try:
            rows = [state[name] for name in ("ids", "boxes", "seen")]
            self._next, self._frame = (int(number) for number in state["next"])
            self._scenes.restore(state)
        except KeyError as error:
            raise JclnfError(f"this is not the state of independent fits ({error})") from None
        self._last = {int(one): (box, int(frame)) for one, box, frame in zip(*rows, strict=True)}
