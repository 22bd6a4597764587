"""The table of the faces that were fitted in images, as CSV."""

import csv
import io
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.fitting import FitStatus
from jclnf.outputs import appending

PIXEL_DECIMALS = 4
"""Decimals of everything in pixels: a float32 at 1000 pixels is good to 0.0001."""

NUMBER_DECIMALS = 6
"""Decimals of scale, angles, likelihood and shape parameters, about what float32 holds."""


def columns(n_landmarks: int, n_modes: int) -> list[str]:
    """Return the names of the columns for a model of `n_landmarks` and `n_modes`."""
    return [
        *("image", "face", "status", "likelihood", "confidence", "success"),
        *("box_x", "box_y", "box_w", "box_h"),
        *("scale", "weak_pitch", "weak_yaw", "weak_roll", "tx", "ty"),
        *(f"x_{i}" for i in range(n_landmarks)),
        *(f"y_{i}" for i in range(n_landmarks)),
        *(f"p_{i}" for i in range(n_modes)),
    ]


class FaceTable:
    """A CSV file of fitted faces, one row each, written as they come.

    Every row reaches the file at once, so that whatever ends the program loses nothing that was
    computed. Columns: `image` (the path as given), `face` (from 0, the largest first), `status`
    (name of the `FitStatus`, lower case), `likelihood`, `confidence` (empty if the model cannot
    tell), `success` (0 or 1); `box_x, box_y, box_w, box_h` the start box and `x_0 ..., y_0 ...` the
    landmarks, in pixels of the upright image, pixel centres at integers; the weak-perspective pose
    `scale` (pixels per millimetre), `weak_pitch, weak_yaw, weak_roll` (radians), `tx, ty` (pixels);
    `p_0 ...` the shape parameters. A field is empty where nothing was measured: pose, landmarks and
    shape of a fit that was no success, everything but `image`, `status` (`no_face`) and `success`
    of an image without a face. UTF-8; a file of the same name is replaced when the first face
    comes.
    """

    def __init__(self, path: str | os.PathLike[str], n_landmarks: int, n_modes: int) -> None:
        """Take the file. Raises OutputError if it cannot be written, or another process does."""
        self.path = Path(path)
        self.rows = 0
        self._n_landmarks = n_landmarks
        self._n_modes = n_modes
        self._waiting: list[bytes] = []
        self._new = not self.path.exists()
        self._open = ExitStack()
        header = _line(columns(n_landmarks, n_modes))
        self._append = self._open.enter_context(appending(self.path, header))

    def write(self, image: str, face: int, box: Any, result: Any) -> None:
        """Append one face and flush.

        Args:
            image: The image's path.
            face: The face's number in the image.
            box: x, y, w, h of the start box in pixels of the image.
            result: Its `FitResult` in the frame of the image (see `FitResult.shifted`).

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
        pose, confidence = result.pose, result.confidence
        numbers = np.concatenate([np.reshape(pose.scale, 1), np.asarray(pose.rotation)])
        pixels = np.concatenate([np.asarray(pose.translation), landmarks.T.reshape(-1)])
        if not result.success:  # which are not the face's
            numbers, pixels, shape = (array * np.nan for array in (numbers, pixels, shape))
        self._append(
            b"".join(self._waiting)
            + _line(
                [
                    image,
                    str(face),
                    FitStatus(int(result.status)).name.lower(),
                    _text(float(result.likelihood), NUMBER_DECIMALS),
                    "" if confidence is None else _text(float(confidence), NUMBER_DECIMALS),
                    str(int(result.success)),
                    *(_text(float(v), PIXEL_DECIMALS) for v in box),
                    *(_text(v, NUMBER_DECIMALS) for v in numbers.tolist()),
                    *(_text(v, PIXEL_DECIMALS) for v in pixels.tolist()),
                    *(_text(v, NUMBER_DECIMALS) for v in shape.tolist()),
                ]
            )
        )
        self._waiting.clear()
        self.rows += 1

    def write_without_face(self, image: str) -> None:
        """Append a row for an image in which there is no face: nothing but that.

        It waits for the first face: a table without one takes the place of no other.
        """
        known = {"image": image, "status": "no_face", "success": "0"}
        names = columns(self._n_landmarks, self._n_modes)
        self._waiting.append(_line([known.get(name, "") for name in names]))
        if self.rows or self._new:
            self._append(b"".join(self._waiting))
            self._waiting.clear()

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def __enter__(self) -> "FaceTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(fields: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    # Names of files need not be text; surrogateescape writes them byte for byte.
    return text.getvalue().encode(errors="surrogateescape")


def _text(value: float, decimals: int) -> str:
    """Return a number with fixed decimals and no negative zero; nothing if it is not finite."""
    return f"{value:z.{decimals}f}" if math.isfinite(value) else ""
