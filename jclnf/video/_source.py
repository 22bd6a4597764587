"""Frames of videos, folders of numbered images, and cameras, one after the other."""

import os
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
_MISSING = 0.05
"""Part of the frames that a file declares and that may be missing: many only estimate them."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video."""

    number: int
    """Counted from 1."""
    time: float
    """Seconds from the first frame: the file's own time stamps, as far as they make sense."""
    image: np.ndarray | None
    """`(h, w, 3)` uint8 (blue, green, red), upright; None if it could not be read."""


@runtime_checkable
class Source(Protocol):
    """Where frames come from."""

    name: str
    """For the names of files."""
    size: tuple[int, int]
    """Width and height in pixels."""
    rate: float
    """Frames per second, nominally."""
    count: int | None
    """Number of frames that are expected; None if nobody knows."""
    problems: list[str]
    """A line for each fault that has been found so far, reading."""

    def frames(self, start: int = 1) -> Iterator[Frame]:
        """The frames from number `start` on."""
        ...


def open_source(path: str | os.PathLike[str], *, rate: float | None = None) -> Source:
    """Open a video file, or a folder of images in the order of the numbers in their names.

    Args:
        path: the file or folder.
        rate: frames per second of a folder; a video file has its own.

    Raises:
        VideoError: there is no video to be read.
    """
    where = Path(path)
    if where.is_dir():
        return ImageFolder(where, FOLDER_RATE if rate is None else rate)
    return VideoFile(where)


class VideoFile:
    """A video file, decoded by FFmpeg as OpenCV has it; rotated as its metadata say."""

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame.

        Raises:
            VideoError: it is missing, empty, no video, or holds no image.
        """
        self.path, self.name = path, path.stem
        self.problems: list[str] = []
        try:
            if not path.is_file():
                raise VideoError(f"{path}: there is no such file")
            if path.stat().st_size == 0:
                raise VideoError(f"{path}: the file is empty")
            with path.open("rb"):
                pass
        except OSError as error:
            raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from None
        capture = self._open()
        rate = float(capture.get(_cv2().CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else 30.0
        declared = capture.get(_cv2().CAP_PROP_FRAME_COUNT)
        self.count = int(declared) if 0 < declared < 2**31 else None
        works, image = capture.read()
        capture.release()
        if not works:
            raise VideoError(f"{path}: no frame of it can be decoded: it is damaged")
        self.size = image.shape[1], image.shape[0]

    def _open(self) -> Any:
        # FFmpeg and nothing else: OpenCV would take a name with a % for that of many images.
        capture = _cv2().VideoCapture(str(self.path), _cv2().CAP_FFMPEG)
        if not capture.isOpened():
            raise VideoError(
                f"{self.path}: cannot be decoded: it is no video, holds sound only, or was cut off "
                "(`ffmpeg -i` says more)"
            )
        return capture

    def frames(self, start: int = 1) -> Iterator[Frame]:
        """See `Source`. Frames before `start` are passed by one by one: files' seeking is inexact.

        An image that cannot be decoded is None; where the file ends early is a problem.
        """
        cv2 = _cv2()
        self.problems = []
        capture = self._open()
        clock = _Clock(1 / self.rate)
        number = 0
        try:
            while capture.grab():
                number += 1
                time = clock.at(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
                if number < start:
                    continue
                works, image = capture.retrieve()
                if not works or image is None or image.shape[1::-1] != self.size:
                    image = None
                    self.problems.append(f"frame {number} cannot be decoded")
                yield Frame(number, time, image)
        finally:
            capture.release()
        if clock.corrected:
            self.problems.append(
                f"{clock.corrected} time stamps did not increase: replaced by the frame rate's"
            )
        if self.count is not None and number < (1 - _MISSING) * self.count - 2:
            self.problems.append(
                f"it ends after {number} of {self.count} frames: damaged, or cut off"
            )


class _Clock:
    """Time stamps that increase and begin at 0."""

    def __init__(self, step: float) -> None:
        self._step, self._first, self._last = step, 0.0, -step
        self._begun = False
        self.corrected = 0

    def at(self, stamp: float) -> float:
        """The time of the next frame, whose stamp in the file is this."""
        if not self._begun:
            self._begun, self._first = True, stamp if np.isfinite(stamp) else 0.0
        time = stamp - self._first
        if not time > self._last:
            self.corrected += 1
            time = self._last + self._step
        self._last = time
        return time


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
        self.count: int | None = len(self.files)
        for file in self.files:
            try:
                image = read_image_file(file).colour
            except ImageError:
                continue
            self.size = image.shape[1], image.shape[0]
            return
        raise VideoError(f"{path}: none of its {self.count} images can be read")

    def frames(self, start: int = 1) -> Iterator[Frame]:
        """See `Source`."""
        self.problems = []
        for number, file in zip(self.numbers, self.files, strict=True):
            if number < start:
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
            yield Frame(number, (number - 1) / self.rate, image)


class Camera:
    """A camera of this machine, by its number; its time is that of the clock."""

    def __init__(self, number: int) -> None:
        """Open the camera.

        Raises:
            VideoError: there is none.
        """
        self.name = f"camera{number}"
        self.count: int | None = None
        self.problems: list[str] = []
        self._capture = _cv2().VideoCapture(number)
        works, image = self._capture.read() if self._capture.isOpened() else (False, None)
        if not works or image is None:
            raise VideoError(f"camera {number}: there is none, or another program uses it")
        self.size = image.shape[1], image.shape[0]
        rate = float(self._capture.get(_cv2().CAP_PROP_FPS))
        self.rate = rate if 0 < rate < 1000 else 30.0

    def frames(self, start: int = 1) -> Iterator[Frame]:
        """Frames as they come, until the camera is taken away."""
        from time import monotonic

        begin, number = monotonic(), start - 1
        try:
            while True:
                works, image = self._capture.read()
                if not works:
                    return
                number += 1
                yield Frame(number, monotonic() - begin, image)
        finally:
            self._capture.release()


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
