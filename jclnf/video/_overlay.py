"""The video with the faces of its table drawn in."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jclnf import draw
from jclnf.errors import JclnfError, OutputError
from jclnf.outputs import replacing
from jclnf.video._derived import rows_of
from jclnf.video._source import Frame, Prefetcher, Source
from jclnf.video._video_file import VideoFile

_CLOCK = 60000
"""Time stamps of a second: whole for the rates of film and television, and little enough for
MPEG-4."""
_CODECS = (
    ("libx264", {"preset": "veryfast", "crf": "20"}),
    ("mpeg4", {"qscale": "4", "flags": "qscale"}),
)
"""Encoders, the first of which that there is is taken, and their options."""
_AVX512 = 256
"""OpenCV's number (`CV_CPU_AVX512_SKX`, without a name in Python) for processors with AVX-512."""

_SOUND_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Samples a second that AAC can have."""


def write_overlay(
    table: Path, frames: Iterator[Frame], source: Source, begin: float, out: Path
) -> None:
    """The video with the faces of the table drawn in: H.264 where this FFmpeg has an encoder, or
    else MPEG-4; each frame at its time, with the sound of the video, if it has any, as AAC.

    Args:
        table: the table.
        frames: those that it is about, again.
        source: where they come from.
        begin: seconds of the video that are left out.
        out: the file.

    Raises:
        OutputError: it could not be written whole.
    """
    import av

    rows = _drawn(table)
    waiting = next(rows, None)
    width, height = source.size
    with replacing(out) as part, contextlib.ExitStack() as stack:
        try:
            writer = stack.enter_context(_Writer(part, source, begin))
            for frame in stack.enter_context(Prefetcher(frames)):
                canvas = frame.image
                if canvas is None:
                    canvas = np.zeros((height, width, 3), np.uint8)
                while waiting is not None and waiting[0] == frame.number:
                    _, label, landmarks = waiting
                    canvas = draw.landmarks(canvas, landmarks, label=label)
                    waiting = next(rows, None)
                writer.add(canvas, frame.time)
            writer.end()
        except (OSError, av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"{out}: cannot be written: {reason}") from None


class _Writer:
    """An MP4 file, written frame by frame; use it as a context."""

    def __init__(self, path: Path, source: Source, begin: float) -> None:
        import av
        import cv2

        self._av = av
        codec, options = next((one for one in _CODECS if one[0] in av.codecs_available), (None, {}))
        if codec is None:
            raise JclnfError(f"{path}: this FFmpeg can write neither H.264 nor MPEG-4")
        if codec == "libx264" and cv2.checkHardwareSupport(_AVX512):
            # With AVX-512, x264 encodes the same images to other files now and then.
            options = options | {"x264-params": "asm=avx2"}
        self._stack = contextlib.ExitStack()
        # A file of our own, since FFmpeg does not report all errors.
        file = self._stack.enter_context(path.open("wb"))
        self._out: Any = self._stack.enter_context(av.open(file, "w", format="mp4"))
        rate = Fraction(source.rate).limit_denominator(1001)
        # These codecs halve the resolution of colours.
        width, height = (side + side % 2 for side in source.size)
        self._video: Any = self._out.add_stream(
            codec, rate, options, width=width, height=height, pix_fmt="yuv420p"
        )
        self._video.codec_context.time_base = Fraction(1, _CLOCK)
        self._step = _CLOCK / source.rate
        self._begin: float | None = None
        self._last: Any = None
        self._sound = _Sound(self._out, source, begin, self._stack)

    def add(self, image: Any, time: float) -> None:
        """Add a frame, `(h, w, 3)` uint8 (blue, green, red), to be shown from a time on."""
        import cv2

        if self._begin is None:
            self._begin = time
        height, width = image.shape[:2]
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        frame = self._av.VideoFrame.from_ndarray(image, format="bgr24")
        frame.time_base = Fraction(1, _CLOCK)
        frame.pts = round((time - self._begin) * _CLOCK)
        if self._last is not None:
            frame.pts = max(frame.pts, self._last.pts + 1)
            self._step = frame.pts - self._last.pts
            self._encode()
        self._last = frame
        self._sound.write(self._begin, time)

    def end(self) -> None:
        """Write what is left."""
        if self._last is not None and self._begin is not None:
            self._encode()
            self._out.mux(self._video.encode(None))
            self._sound.write(self._begin, (self._last.pts + self._step) / _CLOCK + self._begin)
        self._sound.end()
        self._stack.close()

    def _encode(self) -> None:
        self._last.duration = round(self._step)
        self._out.mux(self._video.encode(self._last))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, self._av.FFmpegError):
            self._stack.close()


class _Sound:
    """The sound of a video, written beside its frames.

    Args:
        out: the container of the frames.
        source: the video; folders of images and cameras have no sound.
        begin: seconds before which nothing is used.
        stack: closes what this opens.
    """

    def __init__(self, out: Any, source: Source, begin: float, stack: contextlib.ExitStack) -> None:
        self._out = out
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._waiting: tuple[float, Any] | None = None
        self._stream: Any = None
        if not isinstance(source, VideoFile):
            return
        self._frames = stack.enter_context(contextlib.closing(source.sound(begin)))
        self._waiting = next(self._frames, None)
        if self._waiting is not None:
            rate = self._waiting[1].sample_rate
            self._stream = out.add_stream("aac", rate=rate if rate in _SOUND_RATES else 48000)
            self._stream.layout = "mono" if self._waiting[1].layout.nb_channels == 1 else "stereo"

    def write(self, begin: float, end: float) -> None:
        """Write what lies between two times of the video, the first of which is 0 now."""
        while self._waiting is not None and self._waiting[0] < end:
            time, frame = self._waiting
            if time >= begin:
                frame.time_base = Fraction(1, frame.sample_rate)
                frame.pts = round((time - begin) * frame.sample_rate)
                try:
                    self._out.mux(self._stream.encode(frame))
                except ValueError:  # the sound is of another kind from here on
                    self._frames = iter(())
            self._waiting = next(self._frames, None)

    def end(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._out.mux(self._stream.encode(None))


def _drawn(table: Path) -> Iterator[tuple[int, str, np.ndarray]]:
    """Frame, label and landmarks of each face that was seen."""
    at: list[list[int]] = []
    for names, row in rows_of(table):
        if not at:
            n = sum(name.startswith("x_") for name in names)
            at = [[names.index(f"{axis}_{i}") for i in range(n)] for axis in "xy"]
        if row[4] == "1":
            points: Any = np.array([[float(row[i]) for i in columns] for columns in at]).T
            yield int(row[0]), row[1], points
