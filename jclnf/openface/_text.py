"""OpenFace's text files: lists of files, and matrices as numbers.

Both may end without a newline, use any line ending, and hold empty lines and lines that start
with `#`, which say nothing.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from jclnf.errors import ModelFileError
from jclnf.openface._binary import FLOAT32_MAX, MATRIX_TYPES, read_bytes

MAX_LIST_BYTES = 2**20
"""Largest list of files that is read: OpenFace's have less than a kilobyte."""

MAX_TEXT_BYTES = 16 * 2**20
"""Largest file of numbers that is read: OpenFace's have up to a megabyte."""

_FLOATS = (5, 6)
_CHUNK = 2**16
_COMMENT = re.compile(rb"^[ \t]*#[^\n]*", re.MULTILINE)
_TOKEN = re.compile(rb"\S+")


@dataclass(frozen=True)
class Entry:
    """A line of a list of files: a keyword, the file it names, and what follows the name."""

    keyword: str
    path: Path
    """The file named, relative names taken from the folder of the list."""
    arguments: tuple[str, ...]
    list_path: Path
    line: int

    @property
    def missing(self) -> str:
        """Message for a file that is not there."""
        return (
            f"no such file; {self.list_path.name}, line {self.line} names it ({self.keyword}): "
            "keep OpenFace's model folder together, with all its subfolders"
        )


def read_text(path: Path, limit: int, *, missing: str = "no such file") -> bytes:
    """The content of a text file of up to `limit` bytes, lines ending in a newline character.

    Raises:
        ModelFileError: the errors of `read_bytes`, and a file that is not text.
    """
    data = read_bytes(path, limit, missing=missing)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = "is not a text file, as is expected here"
        raise ModelFileError(path, problem, offset=error.start) from None
    if b"\0" in data:
        problem = "is not a text file: it holds a zero byte"
        raise ModelFileError(path, problem, offset=data.index(b"\0"))
    data = data.removeprefix(b"\xef\xbb\xbf")
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def read_list(
    path: Path, keywords: Collection[str], *, missing: str = "no such file"
) -> list[Entry]:
    """The entries of a list of files: lines of a keyword and a file name.

    The name of a `..._part` ends at the first space, and indices follow it; any other goes on to
    the end of the line. Names may be absolute, lead out of the folder, and use backslashes.

    Args:
        path: the list.
        keywords: those that it may hold.
        missing: what to say if the list is not there.

    Raises:
        ModelFileError: the errors of `read_text`, unknown keywords, and lines without a name.
    """
    entries = []
    lines = read_text(path, MAX_LIST_BYTES, missing=missing).decode("utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        keyword, *rest = line.split(maxsplit=1)
        if keyword not in keywords:
            problem = (
                f"line {number}: unknown keyword {_shown(keyword)}; "
                "a list of OpenFace's model files is expected here"
            )
            raise ModelFileError(path, problem)
        if not rest:
            raise ModelFileError(path, f"line {number}: {keyword} names no file")
        words = rest[0].split() if keyword.endswith("_part") else [rest[0].strip()]
        name = words[0].replace("\\", "/")
        entries.append(Entry(keyword, path.parent / name, tuple(words[1:]), path, number))
    return entries


def read_each(
    path: Path, keywords: Collection[str], *, missing: str = "no such file", remedy: str = ""
) -> dict[str, Entry]:
    """The entries of a list of files that must hold each keyword once, by their keywords.

    Args:
        path, keywords, missing: as for `read_list`.
        remedy: what to add if a keyword is not there.

    Raises:
        ModelFileError: the errors of `read_list`, a keyword twice, or one that is not there.
    """
    entries: dict[str, Entry] = {}
    for entry in read_list(path, keywords, missing=missing):
        if entry.keyword in entries:
            raise ModelFileError(path, f"line {entry.line}: a second {entry.keyword}")
        entries[entry.keyword] = entry
    for keyword in keywords:
        if keyword not in entries:
            raise ModelFileError(path, f"names no {keyword}{remedy}")
    return entries


class TextReader:
    """A position among the numbers of a text file, moved on by reading one after the other.

    The methods are those of `BinaryReader`, and raise `ModelFileError` as they do.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        # Blanks in place of comments keep every number where it was, for the line in messages.
        self._data = _COMMENT.sub(lambda comment: b" " * len(comment[0]), data)
        self._tokens = _TOKEN.finditer(self._data)
        self._at = 0
        underscore = self._data.find(b"_")
        if underscore >= 0:
            # Python, unlike C, reads 1_0 as ten.
            self._at = underscore
            raise self.error("an underscore among the numbers")

    def error(self, problem: str) -> ModelFileError:
        """The error for a problem with the number last read."""
        line = self._data.count(b"\n", 0, self._at) + 1
        return ModelFileError(self.path, f"line {line}: {problem}")

    def integer(self, what: str, low: int, high: int) -> int:
        """A whole number between `low` and `high`, both included."""
        token = self._next(what)
        digits = token.removeprefix(b"-")
        # Nothing in these files has more digits, and Python refuses thousands of them.
        value = int(token) if digits.isdigit() and len(digits) <= 10 else None
        if value is None or not low <= value <= high:
            shown = _shown(token.decode("utf-8"))
            raise self.error(f"{what} is {shown}, not a whole number from {low} to {high}")
        return value

    def matrix(
        self,
        what: str,
        shape: tuple[int | None, int | None],
        types: Collection[int] = _FLOATS,
    ) -> np.ndarray:
        """A matrix: rows, columns and type, then the elements row by row.

        Args:
            what: name of the matrix.
            shape: rows and columns that it must have; None where any number will do.
            types: codes of `MATRIX_TYPES` that it may have.

        Returns:
            Array `(rows, columns)` of finite float32.
        """
        sides = []
        for part, wanted in zip(("rows", "columns"), shape, strict=True):
            low, high = (0, 2**31 - 1) if wanted is None else (wanted, wanted)
            sides.append(self.integer(f"number of {part} of {what}", low, high))
        code = self.integer(f"element type of {what}", min(MATRIX_TYPES), max(MATRIX_TYPES))
        if code not in types:
            allowed = " or ".join(str(t) for t in sorted(types))
            raise self.error(f"{what} has the element type {code}, not {allowed}")
        count = sides[0] * sides[1]
        # A number takes a digit and what separates it from the one before.
        left = len(self._data) - self._at
        if 2 * count > left:
            raise self.error(f"truncated: {what} has {count} numbers, {left} characters are left")
        return self._numbers(count, what).astype(np.float32).reshape(sides)

    def end(self) -> None:
        """The end of the file."""
        extra = next(self._tokens, None)
        if extra is not None:
            self._at = extra.start()
            raise self.error("more follows where the file should end")

    def _next(self, what: str) -> bytes:
        token = next(self._tokens, None)
        if token is None:
            self._at = len(self._data)
            raise self.error(f"truncated: the file ends before the {what}")
        self._at = token.end()
        return token[0]

    def _numbers(self, count: int, what: str) -> np.ndarray:
        values = np.empty(count)
        for start in range(0, count, _CHUNK):
            tokens = list(islice(self._tokens, min(_CHUNK, count - start)))
            part = values[start : start + len(tokens)]
            try:
                part[:] = [float(token[0]) for token in tokens]
                plain = bool((np.abs(part) <= FLOAT32_MAX).all())
            except ValueError:
                plain = False
            if not plain:
                for token in tokens:
                    self._at = token.end()
                    self._check(token[0], what)
            if tokens:
                self._at = tokens[-1].end()
            if start + len(tokens) < min(start + _CHUNK, count):
                raise self.error(f"truncated: {start + len(tokens)} of {count} numbers of {what}")
        return values

    def _check(self, token: bytes, what: str) -> None:
        try:
            problem = None if abs(float(token)) <= FLOAT32_MAX else "a finite single-precision"
        except ValueError:
            problem = "a"
        if problem is not None:
            shown = _shown(token.decode("utf-8", "replace"))
            raise self.error(f"{what}: {shown} is not {problem} number")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
