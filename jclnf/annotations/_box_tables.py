"""Face boxes given by the user, as CSV."""

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TypeVar

from jclnf.errors import BoxError, near_file
from jclnf.images import names

_Entry = TypeVar("_Entry")


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
            BoxError: it cannot be read, lacks a column, or a row does not hold four numbers (or
                four empty fields: no face).
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

    def left_out(self, images: Iterable[str | os.PathLike[str]]) -> list[str]:
        """A line on rows that are for none of these images; none if there are no such rows."""
        return _left_out(self.path, self._boxes, images, "images")


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

    def left_out(self, videos: Iterable[str | os.PathLike[str]]) -> list[str]:
        """A line on rows that are for none of these videos; none if there are no such rows."""
        return _left_out(self.path, self._boxes, videos, "videos")


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
                if key == "image" and all(row[name] == "" for name in keys):
                    continue  # an image without a face, as our own tables have it
                try:
                    box = [float(row[name]) for name in keys]
                    finite = all(map(math.isfinite, box))
                except (TypeError, ValueError):
                    finite = False
                if not finite:
                    raise BoxError(f"{path}, line {reader.line_num}: x, y, w, h must be numbers")
                yield reader.line_num, row, box
    except FileNotFoundError:
        raise BoxError(
            f"{path}: cannot be read: no such file{near_file(path, os.path.isfile)}"
        ) from None
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
    key = _longest_key(entries, path)
    return entries.get(key) if key else None


def _longest_key(
    entries: Mapping[tuple[str, ...], object], path: str | os.PathLike[str]
) -> tuple[str, ...]:
    parts = PurePath(path).parts
    found = (parts[start:] for start in range(len(parts)))
    return next((last for last in found if last in entries), ())


def _left_out(
    path: Path,
    entries: Mapping[tuple[str, ...], object],
    given: Iterable[str | os.PathLike[str]],
    what: str,
) -> list[str]:
    """A line on the entries that are for none of the given paths."""
    used = {_longest_key(entries, each) for each in given} | {()}
    others = [str(PurePath(*key)) for key in entries if key not in used]
    if not others:
        return []
    return [f"{path}: its rows for {len(others)} other {what} are not used: {names(others)}"]
