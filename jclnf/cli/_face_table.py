"""The table of the faces that were fitted in images, as CSV."""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.annotations import NO_FACE, face_columns, face_values
from jclnf.errors import OutputError
from jclnf.outputs import appending, growing

PIXEL_DECIMALS = 4
"""Decimals of everything in pixels: a float32 at 1000 pixels is good to 0.0001."""

NUMBER_DECIMALS = 6
"""Decimals of scale, angles, likelihood and shape parameters, about what float32 holds."""


class FaceTable:
    """A CSV file of fitted faces, one row each, written as they come.

    Every row reaches a file at once, so that whatever ends the program loses nothing that was
    computed; see `jclnf.outputs.appending` for where it is. Columns: `image` (the path as given),
    `face` (from 0, the largest first), `status` (name of the `FitStatus`, lower case),
    `likelihood`, `confidence` (empty if the model cannot tell), `success` (0 or 1); `box_x, box_y,
    box_w, box_h` the start box and `x_0 ..., y_0 ...` the landmarks, in pixels of the upright
    image, pixel centres at integers; the weak-perspective pose `scale` (pixels per millimetre),
    `weak_pitch, weak_yaw, weak_roll` (radians), `tx, ty` (pixels); `p_0 ...` the shape parameters;
    action units, if they are asked for. A field is empty where nothing was measured: pose,
    landmarks, shape and action units of a fit that was no success, everything but `image`,
    `status` (`no_face`) and `success` of an image without a face. UTF-8.

    Use it as a context, which puts the file in place when it ends without an error; one without a
    face takes the place of no other.

    Attributes:
        rows: of faces in the file.
        failed: those of a fit that was no success, and those of images without a face.
        done: the images that the rows of an earlier run are about, with all their faces.
        beside: whether there is an earlier file, which stays until this one is complete.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        n_landmarks: int,
        n_modes: int,
        resume: str = "",
        units: Sequence[str] = (),
    ) -> None:
        """Hold the file's lock.

        Args:
            path: the file.
            n_landmarks, n_modes: of the model.
            resume: how the run to go on with was left: "started" or "complete"; "" to begin anew.
            units: names of the columns of action units.

        Raises:
            OutputError: the file that is to go on has other columns, or cannot be written.
        """
        self.path = Path(path)
        self.rows = self.failed = 0
        self.done: set[str] = set()
        self._n_landmarks = n_landmarks
        self._n_modes = n_modes
        self._columns = face_columns(n_landmarks, n_modes, units)
        self._units = len(units)
        self._header = _line(self._columns)
        self._resume = bool(resume)
        place = growing(self.path, resume=self._resume)
        self.beside = place != self.path
        if resume and place.exists():
            self._recover(place, complete=resume == "complete")

    def _recover(self, place: Path, complete: bool) -> None:
        """Take over the rows of a run that was ended, but for those of the last image, of which
        some may be missing, or half written."""
        rows: list[tuple[int, list[str]]] = []
        with place.open("rb+") as file:
            if file.readline() != self._header:
                raise OutputError(f"{place}: has other columns: run without --resume")
            at = start = file.tell()
            ended = True

            def lines() -> Iterator[str]:
                nonlocal at, ended
                for line in file:
                    at += len(line)
                    ended = line.endswith(b"\n")
                    yield line.decode(errors="surrogateescape")

            names = self._columns
            shown = [names.index(name) for name in ("image", "status", "success")]
            for row in csv.reader(lines()):
                if not ended or len(row) != len(names):
                    break
                rows.append((start, [row[i] for i in shown]))
                start = at
            if rows and not complete:
                last, *_ = rows[-1][1]
                while rows and rows[-1][1][0] == last:
                    start = rows.pop()[0]
            file.truncate(start)
        self.rows = sum(status != NO_FACE for _, (_, status, _) in rows)
        self.failed = sum(success != "1" for _, (_, _, success) in rows)
        self.done = {image for _, (image, _, _) in rows}

    def write(
        self, image: str, face: int, box: Any, result: Any, units: np.ndarray | None = None
    ) -> None:
        """Append one face and flush.

        Args:
            image: The image's path.
            face: The face's number in the image.
            box: x, y, w, h of the start box in pixels of the image.
            result: Its `FitResult` in the frame of the image (see `FitResult.shifted`).
            units: Its action units, if they could be told.

        Raises:
            ValueError: the result has another number of landmarks or modes than the table.
            OutputError: the disk is full, or the like.
        """
        landmarks, shape = np.asarray(result.landmarks), np.asarray(result.shape)
        if landmarks.shape != (self._n_landmarks, 2) or shape.shape != (self._n_modes,):
            raise ValueError(
                f"a face of {len(landmarks)} landmarks and {len(shape)} modes in a table of "
                f"{self._n_landmarks} and {self._n_modes}"
            )
        units = np.full(self._units, np.nan) if units is None else units
        values = face_values(image, face, box, result, units)
        self._append(_line([_text(*each) for each in zip(self._columns, values, strict=True)]))
        self.rows += 1
        self.failed += not result.success

    def write_without_face(self, image: str) -> None:
        """Append a row for an image in which there is no face: nothing but that."""
        known = {"image": image, "status": NO_FACE, "success": "0"}
        names = self._columns
        self._append(_line([known.get(name, "") for name in names]))

    def __enter__(self) -> "FaceTable":
        self._file = appending(
            self.path, self._header, resume=self._resume, worth=lambda: self.rows > 0
        )
        self._append = self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def _line(fields: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    # Names of files need not be text; surrogateescape writes them byte for byte.
    return text.getvalue().encode(errors="surrogateescape")


def _text(column: str, value: Any) -> str:
    """Return a number with fixed decimals and no negative zero; nothing if it is not finite."""
    if not isinstance(value, float):
        return str(value)
    pixels = column in ("tx", "ty") or column.startswith(("box_", "x_", "y_"))
    decimals = PIXEL_DECIMALS if pixels else NUMBER_DECIMALS
    return f"{value:z.{decimals}f}" if math.isfinite(value) else ""
