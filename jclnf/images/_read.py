"""Images from files: decoded by OpenCV, turned as EXIF says, and brought to 8 bits."""

import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jclnf.errors import ImageError
from jclnf.images._folder import REMEDY, kind_of_contents, near_image
from jclnf.images._heif import decode_heif, turned_as_said

MAX_PIXELS = 2**28
"""Most pixels an image file may declare: 16384 x 16384. Larger ones are refused from their header,
before anything is allocated, so that a few bytes claiming a huge image cannot exhaust memory."""

MAX_BYTES = 2**30
"""Largest image file that is read, in bytes."""


@dataclass(frozen=True)
class ImageFile:
    """An image read once, for fitting (`grey`) and for drawing (`colour`).

    Attributes:
        grey: `(h, w)` uint8; of a colour image 0.299 R + 0.587 G + 0.114 B as OpenCV rounds it.
        colour: `(h, w, 3)` uint8 in OpenCV's order blue, green, red.
        path: The file, as `read_image_file` was given it.
    """

    grey: np.ndarray
    colour: np.ndarray
    path: Path


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as `fit` takes it: `(h, w)` grey uint8, upright; see `read_image_file`."""
    return read_image_file(path).grey


def read_image_file(path: str | os.PathLike[str]) -> ImageFile:
    """Read an image of any format that OpenCV decodes, in grey and in colour, to draw on it.

    JPEG, PNG, TIFF, WebP, AVIF, BMP, PNM and others; HEIC with pillow-heif:

    - The orientation of EXIF, or of AVIF, is applied: rows and columns are those a viewer shows.
    - Alpha is dropped: transparent pixels keep the colour stored under them.
    - Of several pages or frames the first is read.
    - Integers of 16 bits are divided so that the smallest of 8, 10, 12, 14 and 16 bits that holds
      the largest value becomes 0-255; a 12-bit camera's image in a 16-bit file keeps its levels.
    - Floating-point images are taken as 0-1 if no value exceeds 1, else as 0-255; any other
      range is refused.

    Raises:
        ImageError: the file is missing, cannot be opened, is not an image, is truncated or
            damaged, declares more than `MAX_PIXELS`, or holds values of another kind.
    """
    where = Path(path)
    return decode_image_file(where, file_bytes(where))


def decode_image_file(where: str | Path, data: bytes) -> ImageFile:
    """As `read_image_file`, of a file whose contents are there already; `where` is its name, which
    need not be one of this machine (`s3://bucket/face.jpg`)."""
    _check_complete(where, data)
    size = _declared_size(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{where}: declares {size[0]} x {size[1]} pixels, more than the {MAX_PIXELS} that are "
            "read; scale it down"
        )
    if kind_of_contents(data) == "heif":
        pixels = decode_heif(where, data, MAX_PIXELS)
    else:
        pixels = _to_8_bit(where, _decode(where, data))
        if data[4:8] == b"ftyp":
            pixels = turned_as_said(pixels, data)

    import cv2

    if pixels.ndim == 2:
        return ImageFile(pixels, cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), Path(where))
    return ImageFile(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), pixels, Path(where))


def file_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the contents of a file; raise ImageError if it is none of 1 to `most` bytes."""
    try:
        # Opening without blocking, so that a named pipe is refused instead of waited for.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(fd, "rb") as f:
            info = os.fstat(f.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(f"{path}: not a file")
            if info.st_size > most:
                raise ImageError(f"{path}: {info.st_size} bytes, more than the {most} allowed")
            data = f.read()
    except IsADirectoryError as e:
        raise ImageError(f"{path}: is a folder, not a file") from e
    except FileNotFoundError as e:
        raise ImageError(f"{path}: no such file{near_image(path)}") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ImageError(f"{path}: cannot be read: {reason}") from e
    if not data:
        raise ImageError(f"{path}: the file is empty: {REMEDY}")
    return data


@contextmanager
def _opencv_silent() -> Iterator[None]:
    """Keep OpenCV's log off stderr: the errors raised here say what it would say."""
    import cv2

    log = cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _decode(path: str | Path, data: bytes) -> np.ndarray:
    """Return the decoded image, upright, (h, w) or (h, w, 3) BGR, at the file's own depth."""
    import cv2

    # Not IMREAD_UNCHANGED: that ignores the EXIF orientation (of all formats but TIFF).
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    try:
        with _opencv_silent():
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as e:
        reason = str(e).strip().splitlines()[-1]
        raise ImageError(f"{path}: cannot be decoded: {reason}: {REMEDY}") from e
    if pixels is None or pixels.size == 0:
        raise ImageError(f"{path}: not an image that OpenCV can read, or a damaged one: {REMEDY}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        return pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise ImageError(
            f"{path}: has {pixels.shape[2]} channels, expected 1 or 3: export it as PNG or JPEG"
        )
    return pixels


def _to_8_bit(path: str | Path, pixels: np.ndarray) -> np.ndarray:
    """Bring a decoded image to uint8 by the rules of `read_image_file`."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype == np.uint16:
        top = next(t for t in (255, 1023, 4095, 16383, 65535) if high <= t)
    elif pixels.dtype.kind == "f" and low >= 0 and high <= 255:  # NaN fails both
        top = 1 if high <= 1 else 255
    else:
        raise ImageError(
            f"{path}: {pixels.dtype} with values {low:g} to {high:g}; save it with 8 or 16 bits"
        )
    return np.rint(pixels.astype(np.float32) * np.float32(255 / top)).astype(np.uint8)


_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# In compressed data FF is followed by 00 (the byte FF itself), a restart marker or a fill byte;
# by anything else it ends them.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, body) of a JPEG's segments; the last is (0xD9, b"") if the file is whole."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":
            at += 1
        if at < 0 or at + 2 > len(data):
            return
        marker = data[at + 1]
        at += 2
        if marker == 0xD9:
            yield marker, b""
            return
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:
            continue
        if at + 2 > len(data):
            return
        (length,) = struct.unpack_from(">H", data, at)
        yield marker, data[at + 2 : at + length]
        at += max(length, 2)
        if marker == 0xDA:
            found = _JPEG_SCAN_END.search(data, at)
            if found is None:
                return
            at = found.start()


def _check_complete(path: str | Path, data: bytes) -> None:
    """Raise if a JPEG or PNG ends early.

    Some decoders fill what is missing with grey and report success. The end is looked for after
    the compressed data: the preview inside a camera's JPEG has an end marker of its own.
    """
    if data.startswith(_JPEG):
        whole = any(marker == 0xD9 for marker, _ in _jpeg_segments(data))
    elif data.startswith(_PNG):
        whole = b"IEND" in data
    else:
        return
    if not whole:
        raise ImageError(f"{path}: the file is truncated, its end is missing: {REMEDY}")


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) as the header of a PNG, JPEG, TIFF or GIF says; None for others.

    These are the formats whose header may claim far more than the bytes that follow could hold
    without compression, below OpenCV's own limit of 2^30 pixels.
    """
    try:
        if data.startswith(_PNG):
            return struct.unpack_from(">II", data, 16)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return struct.unpack_from("<HH", data, 6)
        if data.startswith(_JPEG):
            for marker, body in _jpeg_segments(data):
                if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                    height, width = struct.unpack_from(">HH", body, 1)
                    return width, height
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff_size(data, "<" if data.startswith(b"II") else ">")
    except struct.error:
        pass  # a header cut short is the decoder's to report
    return None


def _tiff_size(data: bytes, order: str) -> tuple[int, int] | None:
    """Return (width, height) of the first image of a TIFF whose byte order is `order`."""
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, directory)
    found = {}
    for i in range(entries):
        at = directory + 2 + 12 * i
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 257):
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 8)
    return (found[256], found[257]) if len(found) == 2 else None
