"""Small videos of a public-domain face that moves."""

from pathlib import Path

import cv2
import numpy as np

SIZE = (240, 200)
"""Width and height."""


def hopper() -> np.ndarray:
    """A part of matplotlib's photograph of Grace Hopper, (h, w, 3) blue, green, red; the face's
    box in it is about `BOX`."""
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        data = np.frombuffer(file.read(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)[0:400, 60:460]
    return cv2.resize(picture, (200, 200), interpolation=cv2.INTER_AREA)


def frames(count: int) -> list[np.ndarray]:
    """The face moving to and fro before a grey background."""
    face, made = hopper(), []
    for k in range(count):
        picture = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        x = round(20 + 12 * np.sin(k / 4))
        picture[:, x : x + 200] = face
        made.append(picture)
    return made


def write_video(path: Path, pictures: list[np.ndarray], rate: float = 25.0) -> Path:
    """A video file of these pictures, MPEG-4 or (.avi) pictures in JPEG."""
    code = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


def rotated(path: Path, out: Path) -> Path:
    """A copy of an MP4 file whose metadata say that it is to be turned by a quarter, clockwise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    assert data[at] == 0  # version
    matrix = at + 40
    one, zero, w = 0x00010000, 0, 0x40000000
    values = [zero, one, zero, (-one) & 0xFFFFFFFF, zero, zero, zero, zero, w]
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big") for v in values)
    out.write_bytes(bytes(data))
    return out
