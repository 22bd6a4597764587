"""The action units of all faces of a video, each face a person."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from jclnf.action_units._model import ActionUnits
from jclnf.action_units._openface import check_frame, describe_openface
from jclnf.action_units._person import FrameUnits, Person
from jclnf.errors import ImageError

GONE = 100
"""Frames after which a person who is followed no more is forgotten."""


class People:
    """Persons by the numbers of their faces.

    >>> people = People(load_action_units())
    >>> for frame in frames:
    ...     units = people.step(frame, tracker.step(frame))

    Args:
        model: the predictors.
        single: there is one person, of the number 0, all the time, as in OpenFace's program for a
            single face: frames without a face are frames in which that person was not seen.
        live: see `Person`.
    """

    def __init__(self, model: ActionUnits, *, single: bool = False, live: bool = False) -> None:
        self.model, self.single, self._live = model, single, live
        self._persons: dict[int, Person] = {}
        self._last: dict[int, int] = {}
        self._frame = 0
        self._ended: dict[int, np.ndarray] = {}

    def step(self, frame: np.ndarray | None, faces: Iterable[Any]) -> dict[int, FrameUnits]:
        """The action units of the faces of the next frame, by their numbers.

        Args:
            frame: `(h, w, 3)` uint8 in OpenCV's order blue, green, red; None if it could not be
                read.
            faces: what a `jclnf.Tracker` found in it.
        """
        self._frame += 1
        found: dict[int, FrameUnits] = {}
        for face in faces:
            described = descriptor = None
            if face.success and frame is not None:
                landmarks = np.asarray(face.result.landmarks)
                check_frame(frame, landmarks)
                # Of points that are no face's shape there is nothing to say.
                with suppress(ImageError):
                    described = describe_openface(self.model, frame, landmarks)
                    descriptor = described.descriptor
            units = self._person(face.id).step(descriptor)
            found[face.id] = units._replace(described=described)
        if self.single and not found:
            found[0] = self._person(0).step(None)
        for number in found:
            self._last[number] = self._frame
        for number in [n for n, last in self._last.items() if self._frame - last > GONE]:
            self._ended[number] = self._persons.pop(number).of_median
            del self._last[number]
        return found

    def of_median(self, number: int) -> np.ndarray:
        """What the median of a person takes away from each output, `(k,)`; of somebody who has left
        as well."""
        if number in self._persons:
            return self._persons[number].of_median
        return self._ended[number]

    def _person(self, number: int) -> Person:
        if number not in self._persons:
            self._persons[number] = Person(self.model, live=self._live)
        return self._persons[number]

    def state(self) -> dict[str, np.ndarray]:
        """All that the next frames depend on, in arrays of plain types, as for a file."""
        ids, ended = list(self._persons), list(self._ended)
        state = {
            "frame": np.array(self._frame),
            "ids": np.array(ids, np.int64),
            "last": np.array([self._last[number] for number in ids], np.int64),
            "ended": np.array(ended, np.int64),
            "ended_medians": np.array([self._ended[number] for number in ended], np.float64),
        }
        for number, person in self._persons.items():
            state |= {f"{number}.{key}": array for key, array in person.state().items()}
        return state

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, exactly."""
        self._frame = int(state["frame"])
        ids = [int(number) for number in state["ids"]]
        self._last = dict(zip(ids, map(int, state["last"]), strict=True))
        ended = map(int, state["ended"])
        self._ended = dict(zip(ended, state["ended_medians"], strict=True))
        self._persons = {}
        for number in ids:
            start = f"{number}."
            own = {key[len(start) :]: v for key, v in state.items() if key.startswith(start)}
            self._person(number).restore(own)
