"""Images of the HEIF family: how an AVIF image is to be turned, and reading HEIC."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jclnf.errors import ImageError
from jclnf.images._folder import REMEDY


def turned_as_said(pixels: np.ndarray, data: bytes) -> np.ndarray:
    """A decoded AVIF image, upright: OpenCV leaves out the rotation and the mirroring that the file
    asks for (ISO/IEC 23008-12, 6.5.10 and 6.5.12, `irot` and `imir`).

    Args:
        pixels: `(h, w)` or `(h, w, 3)`.
        data: the file.
    """
    for kind, value in _transformations(data):
        if kind == b"irot":
            pixels = np.rot90(pixels, value & 3)  # counter-clockwise
        else:
            pixels = pixels[:, ::-1] if value & 1 else pixels[::-1]
    return np.ascontiguousarray(pixels)


def _transformations(data: bytes) -> list[tuple[bytes, int]]:
    """Rotation and mirroring of the primary image, in their order."""
    try:
        meta = dict(_boxes(dict(_boxes(data))[b"meta"][4:]))
        pitm = meta[b"pitm"]
        primary = int.from_bytes(pitm[4:6] if pitm[0] == 0 else pitm[4:8], "big")
        iprp = dict(_boxes(meta[b"iprp"]))
        properties = list(_boxes(iprp[b"ipco"]))
        indices = _associations(iprp[b"ipma"]).get(primary, [])
        found = [properties[index - 1] for index in indices if 0 < index <= len(properties)]
        return [(kind, body[0]) for kind, body in found if kind in (b"irot", b"imir")]
    except (KeyError, IndexError, struct.error):
        return []  # a damaged file is the decoder's to report


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each box."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        end = len(data) if size == 0 else at + size
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end


def _associations(ipma: bytes) -> dict[int, list[int]]:
    """The properties of each item, as indices from 1."""
    version, wide = ipma[0], ipma[3] & 1
    (count,) = struct.unpack_from(">I", ipma, 4)
    at, found = 8, {}
    for _ in range(min(count, len(ipma))):
        item, number = struct.unpack_from(">IB" if version else ">HB", ipma, at)
        at += 5 if version else 3
        form = f">{number}{'H' if wide else 'B'}"
        indices = struct.unpack_from(form, ipma, at)
        at += struct.calcsize(form)
        found[item] = [index & (0x7FFF if wide else 0x7F) for index in indices]
    return found


def decode_heif(path: str | Path, data: bytes, most: int) -> np.ndarray:
    """A HEIC image, upright, `(h, w, 3)` uint8 blue, green, red.

    Raises:
        ImageError: it is damaged, declares more than `most` pixels, or pillow-heif is missing.
    """
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            f"{path}: is a HEIC image, which needs pillow-heif: pip install 'jclnf[heif]', or save "
            "it as JPEG"
        ) from None
    try:
        file = pillow_heif.open_heif(io.BytesIO(data), bgr_mode=True)
        width, height = file.size
        if width * height > most:
            raise ImageError(
                f"{path}: declares {width} x {height} pixels, more than the {most} that are "
                "read; scale it down"
            )
        return np.ascontiguousarray(np.asarray(file)[..., :3])
    except (ValueError, OSError, EOFError, RuntimeError, SyntaxError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: cannot be decoded: {error}: {REMEDY}") from None
