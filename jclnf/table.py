"""Tables as CSV: the faces that were fitted, and face boxes given by the user."""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from jclnf.errors import BoxError

PIXEL_DECIMALS = 4
"""Decimals of everything in pixels: a float32 at 1000 pixels is good to 0.0001."""

NUMBER_DECIMALS = 6
"""Decimals of scale, angles, likelihood and shape parameters, about what float32 holds."""


_Entry = TypeVar("_Entry")


def columns(n_landmarks: int, n_modes: int) -> list[str]:
    """Return the names of the columns for a model of `n_landmarks` and `n_modes`."""
    return [
        *("image", "face", "status", "likelihood", "confidence", "success"),
        *("box_x", "box_y", "box_w", "box_h"),
        *("scale", "rx", "ry", "rz", "tx", "ty"),
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
    `scale` (pixels per millimetre), `rx, ry, rz` (pitch, yaw, roll in
    radians), `tx, ty` (pixels); `p_0 ...` the shape parameters. A number that is not finite is an
    empty field. UTF-8; a file of the same name is replaced.
    """

    def __init__(self, path: str | os.PathLike[str], n_landmarks: int, n_modes: int) -> None:
        """Create the file with its header. Raises OSError where that cannot be done."""
        self.path = Path(path)
        self.rows = 0
        self._n_landmarks = n_landmarks
        self._n_modes = n_modes
        # Names of files need not be text; surrogateescape writes them byte for byte.
        self._file = open(  # noqa: SIM115  (closed by close)
            self.path, "w", newline="", encoding="utf-8", errors="surrogateescape"
        )
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._put(columns(n_landmarks, n_modes))

    def write(self, image: str, face: int, box: Any, result: Any) -> None:
        """Append one face and flush.

        Args:
            image: The image's path.
            face: The face's number in the image.
            box: x, y, w, h of the start box in pixels of the image.
            result: Its `FitResult` in the frame of the image (see `FitResult.shifted`).

        Raises:
            ValueError: the result has another number of landmarks or modes than the table.
            OSError: the disk is full, or the like.
        """
        from jclnf.result import FitStatus

        landmarks, shape = np.asarray(result.landmarks), np.asarray(result.shape)
        if landmarks.shape != (self._n_landmarks, 2) or shape.shape != (self._n_modes,):
            raise ValueError(
                f"a face of {len(landmarks)} landmarks and {len(shape)} modes in a table of "
                f"{self._n_landmarks} and {self._n_modes}"
            )
        pose, confidence = result.pose, result.confidence
        numbers = np.concatenate([np.reshape(pose.scale, 1), np.asarray(pose.rotation)])
        pixels = np.concatenate([np.asarray(pose.translation), landmarks.T.reshape(-1)])
        self._put(
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
        self.rows += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "FaceTable":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, fields: list[str]) -> None:
        self._writer.writerow(fields)
        self._file.flush()


def _text(value: float, decimals: int) -> str:
    """Return a number with fixed decimals and no negative zero; nothing if it is not finite."""
    return f"{value:z.{decimals}f}" if math.isfinite(value) else ""


class BoxTable:
    """Face boxes from a CSV file, by image.

    The file has a header with the columns `image` and `x, y, w, h` (or `box_x, box_y, box_w,
    box_h`, so that a table of fits can be used again), one row a face; other columns are ignored.
    `image` is a path as given to the program, or as many of its last parts as tell it apart: of
    several that match, the longest counts.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file.

        Raises:
            BoxError: it cannot be read, lacks a column, or a row does not hold four numbers.
        """
        self.path = Path(path)
        self._boxes: dict[tuple[str, ...], list[list[float]]] = {}
        for line, row, box in _box_rows(self.path, "image"):
            parts = PurePath(_field(row, "image")).parts
            if not parts:
                raise BoxError(f"{self.path}, line {line}: no image is named")
            self._boxes.setdefault(parts, []).append(box)

    def boxes(self, image: str | os.PathLike[str]) -> list[list[float]]:
        """Return the boxes of an image in the order of the file; none if it is not in it."""
        return _longest_match(self._boxes, image) or []


class FrameBoxTable:
    """Face boxes from a CSV file, by video and frame: hints at which tracks start, or start again.

    The file has a header with the columns `frame` (counted from 1) and `x, y, w, h` (or `box_x,
    box_y, box_w, box_h`), one row a face, any number of them in a frame, in any order; other
    columns are ignored. With a column `video` it serves several videos, named as images are in a
    `BoxTable`; rows that name none, and files without that column, are for any video.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file.

        Raises:
            BoxError: it cannot be read, lacks a column, or a row does not hold a frame's number and
                four numbers.
        """
        self.path = Path(path)
        self._boxes: dict[tuple[str, ...], dict[int, list[list[float]]]] = {}
        for line, row, box in _box_rows(self.path, "frame"):
            text = _field(row, "frame")
            # Nothing has more frames, and Python refuses thousands of digits.
            number = int(text) if text.isdecimal() and len(text) <= 10 else 0
            if number < 1:
                raise BoxError(
                    f"{self.path}, line {line}: frame must be a whole number from 1, for the first"
                )
            parts = PurePath(_field(row, "video")).parts
            self._boxes.setdefault(parts, {}).setdefault(number, []).append(box)

    def boxes(self, video: str | os.PathLike[str]) -> dict[int, list[list[float]]]:
        """Return a video's boxes by the number of the frame, ascending; none if it has none."""
        named = _longest_match(self._boxes, video) or {}
        found = {frame: list(boxes) for frame, boxes in named.items()}
        for frame, boxes in self._boxes.get((), {}).items():
            found.setdefault(frame, []).extend(boxes)
        return dict(sorted(found.items()))


def _box_rows(path: Path, key: str) -> Iterator[tuple[int, dict[str, str | None], list[float]]]:
    """Yield line, fields and box of each row of a file with the column `key` and those of boxes."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            keys = next(
                (k for k in (("x", "y", "w", "h"), ("box_x", "box_y", "box_w", "box_h"))
                 if {key, *k} <= set(names)),
                None,
            )  # fmt: skip
            if keys is None:
                raise BoxError(f"{path}: needs a header line with the columns {key}, x, y, w, h")
            for row in reader:
                try:
                    box = [float(row[name]) for name in keys]
                except (TypeError, ValueError) as e:
                    raise BoxError(
                        f"{path}, line {reader.line_num}: x, y, w, h must be numbers"
                    ) from e
                yield reader.line_num, row, box
    except OSError as e:
        raise BoxError(f"{path}: cannot be read: {e.strerror or e}") from e
    except csv.Error as e:
        raise BoxError(f"{path}: not a CSV file: {e}") from e


def _field(row: dict[str, str | None], name: str) -> str:
    return (row.get(name) or "").strip()


def _longest_match(
    entries: dict[tuple[str, ...], _Entry], path: str | os.PathLike[str]
) -> _Entry | None:
    """Return what is kept for a path, or for as many of its last parts as are named."""
    parts = PurePath(path).parts
    found = (parts[start:] for start in range(len(parts)))
    return next((entries[last] for last in found if last in entries), None)
