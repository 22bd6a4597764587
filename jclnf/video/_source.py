"""Frames of videos, folders of numbered images, and cameras, one after the other."""

import math
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jclnf.errors import ImageError, VideoError
from jclnf.images import Folder, read_image_file
from jclnf.video._numbering import frame_numbers, natural

PREFETCHED = 8
"""Frames that are read ahead, at most."""
FOLDER_RATE = 30.0
"""Frames per second that a folder of images is taken to have unless one is given."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video."""

    number: int
    """Counted from 1."""
    time: float
    """Seconds from the first frame: the file's own time stamps, as far as they make sense."""
    image: np.ndarray | None
    """`(h, w, 3)` uint8 (blue, green, red), upright; None if it could not be read."""


@dataclass(frozen=True)
class Selection:
    """Some frames of a video."""

    start: int = 1
    """Number of the first."""
    begin: float = 0.0
    """Seconds before which none is used."""
    end: float = math.inf
    """Seconds after which none is used."""
    every: int = 1
    """The first frame of the video and every so many after it."""

    def holds(self, number: int, time: float) -> bool:
        """Whether the frame of this number and time is one of them."""
        inside = number >= self.start and self.begin <= time <= self.end
        return inside and (number - 1) % self.every == 0


@runtime_checkable
class Source(Protocol):
    """Where frames come from."""

    name: str
    """For the names of files."""
    size: tuple[int, int]
    """Width and height in pixels."""
    rate: float
    """Frames per second, nominally."""
    problems: list[str]
    """A line for each fault that has been found so far, reading."""

    def frames(self, selection: Selection = Selection()) -> Iterator[Frame]:
        """Those frames of the video."""
        ...

    def expected(self, selection: Selection = Selection()) -> int | None:
        """About how many those are; None if nobody knows."""
        ...


class ImageFolder:
    """A folder of images, in the order of the numbers in their names, which count the frames; see
    `frame_numbers`. What jclnf has written there is not among them."""

    def __init__(self, path: Path, rate: float) -> None:
        """List the folder.

        Raises:
            VideoError: it cannot be read, or holds no images.
        """
        self.path, self.name, self.rate = path, path.resolve().name or "frames", rate
        self.problems: list[str] = []
        if not 0 < rate < 1e6:
            raise VideoError(f"{path}: {rate:g} frames per second cannot be: give a positive rate")
        try:
            files = Folder.of(path).images
        except OSError as error:
            raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from None
        self.files = sorted(files, key=lambda file: natural(file.name))
        self.numbers = frame_numbers([file.name for file in self.files])
        for file in self.files:
            try:
                image = read_image_file(file).colour
            except ImageError:
                continue
            self.size = image.shape[1], image.shape[0]
            return
        raise VideoError(f"{path}: none of its {len(self.files)} images can be read")

    def frames(self, selection: Selection = Selection()) -> Iterator[Frame]:
        """See `Source`."""
        self.problems = []
        for number, file in zip(self.numbers, self.files, strict=True):
            time = (number - 1) / self.rate
            if not selection.holds(number, time):
                continue
            image: np.ndarray | None = None
            try:
                image = read_image_file(file).colour
                if image.shape[1::-1] != self.size:
                    width, height = self.size
                    self.problems.append(f"{file.name} is not {width} x {height} as the others")
                    image = None
            except ImageError as error:
                self.problems.append(str(error))
            yield Frame(number, time, image)

    def expected(self, selection: Selection = Selection()) -> int | None:
        """See `Source`."""
        return sum(selection.holds(number, (number - 1) / self.rate) for number in self.numbers)


class Camera:
    """A camera of this machine, by its number; its time is that of the clock."""

    def __init__(self, number: int) -> None:
        """Open the camera.

        Raises:
            VideoError: there is none.
        """
        self.name = f"camera{number}"
        self.problems: list[str] = []
        self._capture = _cv2().VideoCapture(number)
        works, image = self._capture.read() if self._capture.isOpened() else (False, None)
        if not works or image is None:
            raise VideoError(f"camera {number}: there is none, or another program uses it")
        self.size = image.shape[1], image.shape[0]
        rate = float(self._capture.get(_cv2().CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else 30.0

    def frames(self, selection: Selection = Selection()) -> Iterator[Frame]:
        """Frames as they come, until the camera is taken away."""
        from time import monotonic

        begin, number = monotonic(), selection.start - 1
        try:
            while True:
                works, image = self._capture.read()
                if not works:
                    return
                number += 1
                time = monotonic() - begin
                if time > selection.end:
                    return
                if selection.holds(number, time):
                    yield Frame(number, time, image)
        finally:
            self._capture.release()

    def expected(self, selection: Selection = Selection()) -> int | None:  # noqa: ARG002
        """See `Source`."""
        return None


class Prefetcher:
    """Frames read by a thread of its own, some before they are asked for.

    Use it as a context: leaving it ends the thread.
    """

    def __init__(self, frames: Iterator[Frame], most: int = PREFETCHED) -> None:
        self._frames = frames
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(most)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True, name="frames")

    def __enter__(self) -> Iterator[Frame]:
        self._thread.start()
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        last: BaseException | None = None
        try:
            for frame in self._frames:
                if not self._put(frame):
                    return
        except BaseException as error:  # raised again where frames are used
            last = error
        finally:
            close = getattr(self._frames, "close", None)
            if close is not None:
                close()
        self._put(last)

    def _put(self, item: Frame | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _iterate(self) -> Iterator[Frame]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


def _cv2() -> Any:
    import cv2

    return cv2
