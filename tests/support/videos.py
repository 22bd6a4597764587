"""Small videos of a public-domain face that moves."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SIZE = (240, 200)
"""Width and height."""
_MS = Fraction(1, 1000)


def hopper() -> np.ndarray:
    """A part of matplotlib's photograph of Grace Hopper, (h, w, 3) blue, green, red; the face's
    box in it is about `BOX`."""
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        data = np.frombuffer(file.read(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)[0:400, 60:460]
    return cv2.resize(image, (200, 200), interpolation=cv2.INTER_AREA)


def frames(count: int) -> list[np.ndarray]:
    """The face moving to and fro before a grey background."""
    face, made = hopper(), []
    for k in range(count):
        image = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        x = round(20 + 12 * np.sin(k / 4))
        image[:, x : x + 200] = face
        made.append(image)
    return made


def write_video(
    path: Path,
    images: list[np.ndarray],
    rate: float = 25.0,
    *,
    times: list[float] | None = None,
    codec: str | None = None,
    pixels: str | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    sound: float = 0.0,
    container: dict[str, str] | None = None,
) -> Path:
    """A video file of these images, MPEG-4 or (.avi) images in JPEG.

    Args:
        times: seconds of each image in place of those of the rate.
        codec, pixels, options: of another encoder.
        aspect: width of a pixel by its height.
        sound: seconds of a tone.
        container: options of the format.
    """
    jpeg = path.suffix == ".avi"
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(
            codec or ("mjpeg" if jpeg else "mpeg4"),
            rate=Fraction(rate).limit_denominator(1001),
            options=options or {"qscale": "3", "flags": "qscale"},
        )
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels or ("yuvj420p" if jpeg and codec is None else "yuv420p")
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            tone = out.add_stream("aac", rate=8000)
            tone.layout = "mono"
            samples = np.sin(np.arange(round(8000 * sound)) / 4).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 0
            out.mux(tone.encode(frame))
            out.mux(tone.encode(None))
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = number if times is None else round(1000 * times[number])
            frame.time_base = 1 / stream.codec_context.framerate if times is None else _MS
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def rotated(path: Path, out: Path, matrix: tuple[int, int, int, int] = (0, 1, -1, 0)) -> Path:
    """A copy of an MP4 file whose metadata say how it is to be turned: a pixel `(x, y)` is shown
    at `(a x + c y, b x + d y)`; by a quarter, clockwise, unless the four are given."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    assert data[at] == 0  # version
    a, b, c, d = (0x00010000 * one & 0xFFFFFFFF for one in matrix)
    values = [a, b, 0, c, d, 0, 0, 0, 0x40000000]
    data[at + 40 : at + 76] = b"".join(v.to_bytes(4, "big") for v in values)
    out.write_bytes(bytes(data))
    return out
