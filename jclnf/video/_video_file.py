"""Video files, decoded by FFmpeg as PyAV has it."""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.errors import VideoError
from jclnf.video._clock import Clock
from jclnf.video._reading import REMEDY, Reading
from jclnf.video._source import Frame, Selection

_LINES = 12
"""Numbers of frames that are named in a line, at most."""


class VideoFile:
    """A video file. Its frames are as they are meant to be shown: turned as the metadata say,
    with square pixels, and without interlacing (by `bwdif`, a frame for each frame).
    """

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame.

        Raises:
            VideoError: it is missing, empty, no video, or holds no image.
        """
        self.path, self.name = path, path.stem
        self.problems: list[str] = []
        try:
            if not path.is_file():
                raise VideoError(f"{path}: no such file")
            if path.stat().st_size == 0:
                raise VideoError(f"{path}: the file is empty: {REMEDY}")
            with path.open("rb"):
                pass
        except OSError as error:
            raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from None
        with closing(Reading(path)) as reading:
            stream = reading.stream
            # One of the two may be the rate of the clock.
            rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
            self.rate = float(min(rates, default=stream.base_rate or 30))
            seconds = (reading.container.duration or 0) / 1e6
            self._count = stream.frames or round(seconds * self.rate)
            self._first: int | None
            self._first, frame = next(frames := reading.frames(), (None, None))
            if frame is None:
                frame = next((frame for _, frame in frames if frame is not None), None)
            if frame is None:
                raise VideoError(f"{path}: no frame of it can be decoded, it is damaged: {REMEDY}")
            aspect = stream.sample_aspect_ratio
            self._aspect = aspect if aspect and 1 / 16 < aspect < 16 else Fraction(1)
            self.properties: dict[str, Any] = {
                "codec": stream.codec_context.name,
                "pixel_format": frame.format.name,
                "pixel_aspect": round(float(self._aspect), 6),
                "rotation": -frame.rotation % 360,
                "deinterlaced": False,
            }
            image = _Painter(self._aspect).image(frame)
            self.size = image.shape[1], image.shape[0]

    def frames(self, selection: Selection = Selection()) -> Iterator[Frame]:  # noqa: B008
        """See `Source`.

        Where the file allows, what lies before `selection.begin` is passed over without being
        decoded; frames, numbers and times are the same as otherwise. The image of a frame that
        cannot be decoded whole is None, and a file that ends early is a problem.
        """
        self.problems = []
        reading, number, before = self._opened(selection.begin)
        painter = _Painter(self._aspect, self.size)
        clock = Clock(1 / self.rate, float(reading.stream.time_base))
        if before is not None and self._first is not None:
            clock.go_on(self._first, before)
        damaged: list[int] = []
        complete = False
        with closing(reading):
            try:
                for time, frame in clock.times(reading.frames()):
                    number += 1
                    if frame is None:
                        damaged.append(number)
                    if time > selection.end:
                        return
                    if selection.holds(number, time):
                        yield Frame(number, time, None if frame is None else painter.image(frame))
                complete = True
            finally:
                self.properties["deinterlaced"] |= reading.interlaced
                self.problems += [*painter.problems, *clock.problems]
                if damaged:
                    self.problems.append(f"{_frames(damaged)} cannot be decoded whole: damaged")
                if complete and (reason := reading.cut_off()):
                    self.problems.append(f"it ends early, after {number} frames: {reason}")

    def expected(self, selection: Selection = Selection()) -> int | None:  # noqa: B008
        """See `Source`: as if all frames had the same length."""
        if self._count == 0:
            return None
        first = max(selection.start, math.ceil(selection.begin * self.rate - 1e-6) + 1)
        last, every = self._count, selection.every
        if math.isfinite(selection.end):
            last = min(last, math.floor(selection.end * self.rate + 1e-6) + 1)
        return max(0, (last - 1) // every - (first - 2) // every)

    def sound(self, begin: float = 0.0) -> Generator[tuple[float, Any]]:
        """The frames of the sound, as PyAV has them, each with its time, as that of the images.

        Args:
            begin: seconds before which nothing needs to come.
        """
        with closing(Reading(self.path)) as reading:
            base = float(reading.stream.time_base)
            yield from reading.sound((self._first or 0) * base, begin)

    def _opened(self, begin: float) -> tuple[Reading, int, float | None]:
        """The file from its beginning, or from shortly before a time; how many frames precede it,
        and when the last of them is shown."""
        reading = Reading(self.path)
        if begin > 0 and self._first is not None:
            skipped = reading.skip(self._first, begin, self.rate)
            if skipped is not None:
                return reading, *skipped
            reading.close()
            reading = Reading(self.path)
        return reading, 0, None


class _Painter:
    """Makes images of decoded frames: `(h, w, 3)` uint8 (blue, green, red), as they are shown.

    Args:
        aspect: width of a pixel by its height.
        size: width and height of all images; others are fitted into them. None: as they come.
    """

    def __init__(self, aspect: Fraction, size: tuple[int, int] | None = None) -> None:
        import av.sidedata.sidedata
        import av.video.reformatter
        import cv2

        self.problems: list[str] = []
        self._aspect, self._size, self._cv2 = float(aspect), size, cv2
        self._converter = av.video.reformatter.VideoReformatter()
        self._side_data: Any = av.sidedata.sidedata.SideDataContainer
        self._others: set[tuple[int, int]] = set()

    def image(self, frame: Any) -> np.ndarray:
        """The image of a frame."""
        converted = self._converter.reformat(
            frame,
            width=max(1, round(frame.width * self._aspect)),
            threads=1,
            format="bgr24",
            interpolation="BICUBIC",
        )
        image = self._turned(converted.to_ndarray(), frame)
        size = image.shape[1], image.shape[0]
        if self._size is None or size == self._size:
            return image
        return self._fitted(image)

    def _turned(self, image: np.ndarray, frame: Any) -> np.ndarray:
        # What `frame.side_data` gives is kept by the frame and holds it: a circle, which stays, and
        # the decoded image with it, until Python looks for such.
        side_data = self._side_data(frame)
        matrix = next((d for d in side_data if d.type.name == "DISPLAYMATRIX"), None)
        if matrix is None:
            return image
        # A pixel (x, y) is shown at (a x + c y, b x + d y), but for the origin.
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        x, y = a, d
        if abs(b) > abs(a):
            image, x, y = self._cv2.transpose(image), c, b
        for axis, sign in ((1, x), (0, y)):
            if sign < 0:
                image = self._cv2.flip(image, axis)
        return image

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        """An image in the middle of one of the others' size."""
        assert self._size is not None
        height, width = image.shape[:2]
        if (width, height) not in self._others:
            self._others.add((width, height))
            self.problems.append(
                f"its size changes from {self._size[0]} x {self._size[1]} to {width} x {height}: "
                "such frames were fitted into the former, with black beside them"
            )
        scale = min(self._size[0] / width, self._size[1] / height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        kind = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_CUBIC
        canvas = np.zeros((self._size[1], self._size[0], 3), np.uint8)
        x, y = (self._size[0] - inner[0]) // 2, (self._size[1] - inner[1]) // 2
        canvas[y : y + inner[1], x : x + inner[0]] = self._cv2.resize(
            image, inner, interpolation=kind
        )
        return canvas


def _frames(numbers: list[int]) -> str:
    """Numbers of frames in words: `frames 3-5 and 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    names = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    if len(names) > _LINES:
        names = [*names[:_LINES], f"others ({len(numbers)} in all)"]
    what = "frame" if len(numbers) == 1 else "frames"
    return f"{what} {', '.join(names)}"
