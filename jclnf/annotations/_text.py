"""Text files and the numbers in them, read with errors that say where."""

from collections.abc import Iterator
from pathlib import Path

from jclnf.annotations._face import AnnotatedFace
from jclnf.errors import AnnotationError, ImageError
from jclnf.images import file_bytes

MAX_BYTES = 2**28
"""Largest annotation file that is read: over 100,000 faces of 68 landmarks."""

Entries = Iterator[tuple[str, AnnotatedFace]]
"""Faces, each with where it stands, for messages."""


def text_of(path: Path, most: int = MAX_BYTES) -> str:
    """The text of a file of at most `most` bytes; raises AnnotationError if it is none."""
    # Names of images need not be UTF-8; surrogateescape finds them byte for byte.
    return contents(path, most).decode("utf-8-sig", errors="surrogateescape")


def contents(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most `most`; raises AnnotationError if it is none."""
    try:
        return file_bytes(path, most)
    except ImageError as e:
        raise AnnotationError(str(e)) from e


def number(place: str, text: str) -> float:
    """A number from a text that stands at `place`; raises AnnotationError if it is none."""
    try:
        return float(text)
    except ValueError:
        raise AnnotationError(f"{place}: {text[:40]!r} is not a number") from None
