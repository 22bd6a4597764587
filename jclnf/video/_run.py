"""A run over one video: its frames are read, its faces followed, and their rows written."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import jclnf
from jclnf.annotations import FrameBoxTable, pts_text
from jclnf.detect import make_detector
from jclnf.errors import BoxError
from jclnf.fitting import Model
from jclnf.openface import OpenFaceTable, measure
from jclnf.outputs import discard, write_bytes, write_png
from jclnf.space import EYES, Camera
from jclnf.tracking import TrackedFace, Tracker, TrackParams
from jclnf.video._aligned import aligned_face
from jclnf.video._checkpoint import Checkpoint
from jclnf.video._faces import Followed, Independent
from jclnf.video._settings import CHUNK, Settings, model_digest, source_digest
from jclnf.video._source import Ahead, Frame, Source

CHECKPOINT_SECONDS = 5.0
"""Time between two checkpoints: what is lost, at most, when a run is killed."""


OUTPUTS = (".json", ".png", ".parquet", "_smoothed.csv", "_overlay.mp4")
"""Ends of the names of the files that are made at the end of a run."""


@dataclass
class Record:
    """What a run counted."""

    frames: int = 0
    """Frames that were used."""
    rows: int = 0
    seen: int = 0
    """Rows of faces that were fitted with success."""
    unreadable: list[int] = field(default_factory=list)
    """Numbers of frames that could not be read."""


Told = Callable[[Frame, list[TrackedFace]], bool]
"""Called after each frame with its faces; False ends the run."""


class Run:
    """A run over one video.

    Args:
        settings: what is to be done.
        model: prepared by nobody yet.
        source: the video.
        out: folder of the results.
        stem: first part of the results' names.
    """

    def __init__(
        self, settings: Settings, model: Model, source: Source, out: Path, stem: str
    ) -> None:
        self.settings, self.model, self.source = settings, model, source
        self.out, self.stem = out, stem
        self.camera = Camera.assumed(*source.size, settings.focal, settings.centre)
        self.path = out / f"{stem}.csv"
        self.record = Record()
        gaze = {part.name for part in model.parts} >= set(EYES)
        self.table = OpenFaceTable(
            model.pdm.n_landmarks,
            model.pdm.n_modes,
            video=True,
            gaze=gaze,
            full_precision=settings.full_precision,
        )
        path = getattr(source, "path", None)
        self._faces = self._follower(path)
        files = [file for file in (path, settings.boxes) if file is not None]
        digests = [source_digest(Path(file)) for file in files]
        digest = settings.digest(jclnf.__version__, model_digest(model), digests, CHUNK)
        self.checkpoint = Checkpoint(out / f"{stem}.checkpoint", digest)
        self._pts = out / f"{stem}_pts"
        self._aligned = out / f"{stem}_aligned"

    def _follower(self, path: Path | None) -> Followed | Independent:
        settings = self.settings
        names = ("arithmetic", "iterations")
        changes = {name: getattr(settings, name) for name in names if getattr(settings, name)}
        params = self.model.defaults.replace(**changes)
        most = 1 if settings.one else settings.faces
        if settings.independent:
            return Independent(
                self.model, params, make_detector(settings.detector, fast=True), most
            )
        boxes: dict[int, Any] = {}
        detector = None
        if settings.boxes is None:
            detector = make_detector(settings.detector, fast=True)
        elif path is not None:
            boxes = FrameBoxTable(settings.boxes).boxes(path)
            if not boxes:
                raise BoxError(f"{settings.boxes}: holds no boxes for {path}")
        tracker = Tracker(
            self.model,
            TrackParams.of(dataclasses.replace(self.model, defaults=params)),
            detector=detector,
            single=settings.one,
            max_faces=most,
        )
        return Followed(tracker, boxes)

    def perform(
        self,
        *,
        resume: bool,
        every: float = CHECKPOINT_SECONDS,
        told: Told | None = None,
        begun: Callable[[int], None] | None = None,
    ) -> Record:
        """Read the video and write the table, and what comes with each frame.

        Args:
            resume: go on from the checkpoint, if there is one.
            every: seconds between checkpoints.
            told: see `Told`.
            begun: called with the number of frames that are done already.

        Raises:
            VideoError: as `Checkpoint.load`.
            OSError: the results cannot be written.
        """
        first, offset = 1, 0
        saved = self.checkpoint.load() if resume else None
        if saved is not None:
            arrays, numbers = saved
            first, offset = numbers["frame"], numbers["offset"]
            self.record = Record(**numbers["record"])
            self._faces.restore(arrays)
        if begun is not None:
            begun(first - 1)
        for wanted, folder in (
            (self.settings.pts, self._pts),
            (self.settings.aligned, self._aligned),
        ):
            if wanted:
                folder.mkdir(exist_ok=True)
                # Those of another run would be taken for this one's.
                for old in () if saved is not None else folder.glob("[0-9]*_[0-9]*.*"):
                    old.unlink(missing_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            if saved is None:
                self.checkpoint.remove()
            file.truncate(offset)
            file.seek(offset)
            if offset == 0:
                file.write(self.table.header.encode())
            last = time.monotonic()
            with Ahead(self.used(first)) as frames:
                for chunk in _chunks(frames):
                    number, going = self._one_chunk(chunk, file, told)
                    if not going:
                        break
                    if time.monotonic() - last >= every:
                        self._save(file, number + 1)
                        last = time.monotonic()
            file.flush()
            os.fsync(file.fileno())
        return self.record

    def tidy(self) -> None:
        """Remove what is not needed once all is complete, files half written by killed runs too."""
        self.checkpoint.remove()
        for ending in OUTPUTS:
            discard(self.out / f"{self.stem}{ending}")
        for part in (*self._pts.glob(".*.part.pts"), *self._aligned.glob(".*.part.png")):
            part.unlink(missing_ok=True)

    def used(self, first: int = 1) -> Iterator[Frame]:
        """The frames between the times that the settings give, from number `first` on."""
        end = float("inf") if self.settings.end is None else self.settings.end
        frames = self.source.frames(first)
        with contextlib.closing(frames):  # type: ignore[type-var]
            for frame in frames:
                if frame.time > end:
                    return
                if frame.time >= self.settings.begin:
                    yield frame

    def _save(self, file: BinaryIO, following: int) -> None:
        file.flush()
        os.fsync(file.fileno())
        numbers = {"frame": following, "offset": file.tell(), "record": vars(self.record)}
        self.checkpoint.save(self._faces.state(), numbers)

    def _one_chunk(
        self, chunk: Iterator[Frame], file: BinaryIO, told: Told | None
    ) -> tuple[int, bool]:
        """Follow the faces through a chunk and write their rows; the last frame's number, and
        False if the run was ended."""
        frames: list[Frame] = []
        found: list[list[TrackedFace]] = []
        going = True
        for frame, faces in self._faces.follow(chunk):
            self._write_pictures(frame, faces)
            going = told is None or told(frame, faces)
            # A chunk of large pictures would fill the memory.
            frames.append(dataclasses.replace(frame, picture=None))
            found.append(faces)
            if frame.picture is None:
                self.record.unreadable.append(frame.number)
            if not going:
                break
        results = [face.result for faces in found for face in faces]
        measured = iter(measure(results, self.camera))
        lines = []
        for frame, faces in zip(frames, found, strict=True):
            for face in faces:
                # Without any means to tell, a fit that did not fail is as good as it gets.
                confidence = float(face.success) if face.confidence is None else face.confidence
                start = (frame.number, face.id, frame.time, confidence, int(face.success))
                lines.append(self.table.row(start, next(measured)))
                self.record.seen += face.success
            if not faces and self.settings.one:
                lines.append(self.table.row((frame.number, 0, frame.time, 0.0, 0), None))
        self.record.frames += len(frames)
        self.record.rows += len(lines)
        file.write("".join(lines).encode())
        file.flush()
        return frames[-1].number, going

    def _write_pictures(self, frame: Frame, faces: list[TrackedFace]) -> None:
        if frame.picture is None:
            return
        one_of_many = {"lock": False, "sync": False}  # whoever does the run holds its lock
        for face in faces:
            if not face.success:
                continue
            name = f"{frame.number:06d}_{face.id}"
            landmarks = np.asarray(face.result.landmarks)
            if self.settings.pts:
                write_bytes(self._pts / f"{name}.pts", pts_text(landmarks).encode(), **one_of_many)
            if self.settings.aligned:
                mean = np.asarray(self.model.pdm.mean)
                picture = aligned_face(frame.picture, landmarks, mean, self.settings.aligned)
                write_png(self._aligned / f"{name}.png", picture, **one_of_many)


def _chunks(frames: Iterable[Frame]) -> Iterator[Iterator[Frame]]:
    """Frames in the chunks that their numbers give, whatever the first one is."""
    for _, chunk in groupby(frames, key=lambda frame: (frame.number - 1) // CHUNK):
        yield chunk
