"""A run over one video: its frames are read, its faces followed, and their rows written."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import jclnf
from jclnf.action_units import FrameUnits, People, check_detector, load_action_units
from jclnf.annotations import FrameBoxTable, pts_text
from jclnf.detect import default_name, make_detector
from jclnf.errors import BoxError, VideoError
from jclnf.files import find_model
from jclnf.fitting import Model
from jclnf.openface import OpenFaceTable, measure_faces
from jclnf.outputs import abandon, discard, growing, settle, write_bytes, write_png
from jclnf.runtime import device_report
from jclnf.space import EYES, Camera
from jclnf.tracking import TrackedFace, Tracker, TrackParams
from jclnf.video._aligned import aligned_face
from jclnf.video._checkpoint import Checkpoint
from jclnf.video._faces import DescriptorFile, write_face
from jclnf.video._fitters import IndependentFitter, TrackingFitter
from jclnf.video._settings import CHUNK, Settings, model_digest, source_digest
from jclnf.video._source import Camera as CameraSource
from jclnf.video._source import Frame, Prefetcher, Selection, Source
from jclnf.video._units import KeptUnits, UnitsFile

CHECKPOINT_SECONDS = 5.0
"""Time between two checkpoints: what is lost, at most, when a run is killed."""


FORMAT = 7
"""Of checkpoints: those of another one are refused."""

_PEOPLE = "people."
"""How the names begin, in checkpoints, of what is known of persons."""

_DERIVED = {
    ".json": "",
    ".png": "plot",
    ".parquet": "parquet",
    "_smoothed.csv": "smooth",
    "_overlay.mp4": "overlay",
    "_images.csv": "",
}
"""How the names end of the files that are written once the table is complete, with the settings
that ask for them."""
_FOLDERS = {"_pts": "pts", "_aligned": "aligned", "_masked": "masked"}
_GROWING = {".csv": "", ".hog": "hog", **_FOLDERS}
"""The same of the table, and of the file and the folders that are filled with it."""


def endings(settings: Settings) -> tuple[list[str], list[str]]:
    """How the names end of what a run writes, and of what it might have written."""
    wanted: list[str] = []
    others: list[str] = []
    for ending, name in (_GROWING | _DERIVED).items():
        (wanted if not name or getattr(settings, name) else others).append(ending)
    return wanted, others


def checkpoint_of(out: Path, stem: str) -> Path:
    """Where a run says how far it is."""
    return out / f"{stem}.checkpoint"


@dataclass
class Counts:
    """How much a run has done so far; goes into its checkpoint and its metadata as it is."""

    frames: int = 0
    """Frames that were used."""
    rows: int = 0
    rows_with_success: int = 0
    frames_without_face: int = 0
    unreadable_frames: list[int] = field(default_factory=list)
    """Numbers of frames that could not be read."""
    cuts: list[int] = field(default_factory=list)
    """Numbers of the first frames after cuts, at which faces of before have ended."""


OnFrame = Callable[[Frame, list[TrackedFace]], bool]
"""Called after each frame with its faces; returns False to end the run."""


class Run:
    """A run over one video.

    Args:
        settings: how the faces are found and fitted, and which results are written.
        model: as it was loaded.
        source: the video.
        out: folder of the results.
        stem: first part of the results' names.
    """

    def __init__(
        self, settings: Settings, model: Model, source: Source, out: Path, stem: str
    ) -> None:
        if settings.detector is None and settings.boxes is None:
            name = default_name(settings.model, openface=settings.openface_csv)
            settings = dataclasses.replace(settings, detector=name)
        if settings.arithmetic is None and settings.openface_csv and model.start is None:
            settings = dataclasses.replace(settings, arithmetic="openface")
        self.settings, self.model, self.source = settings, model, source
        self.out, self.stem = out, stem
        self.camera = Camera.assumed(*source.size, settings.focal, settings.centre)
        self.path = out / f"{stem}.csv"
        self.counts = Counts()
        self._boxes: dict[int, Any] = {}
        # Beyond that a head may turn as far as another face looks different.
        self._seeks_cuts = settings.every <= 3
        gaze = {part.name for part in model.parts} >= set(EYES)
        self.units: UnitsFile | None = None
        if settings.aus:
            check_detector(model)
            predictors = load_action_units(
                settings.au_models,
                static=settings.au_static,
                model=find_model(settings.model or "default"),
            )
            single = settings.one and not settings.independent
            live = isinstance(source, CameraSource)
            self.units = UnitsFile(out, stem, People(predictors, single=single, live=live))
        self.table = OpenFaceTable(
            model.pdm.n_landmarks,
            model.pdm.n_modes,
            video=True,
            gaze=gaze,
            action_units=self.units.people.model.columns if self.units else (),
            cut=not settings.openface_csv,
            full_precision=settings.full_precision,
            zeros=settings.openface_csv,
            spaces=settings.csv_spaces,
        )
        path = getattr(source, "path", None)
        self._fitter = self._make_fitter(path)
        depends = settings.depends() | {
            "the model": model_digest(model),
            # Its arithmetic: another one's last digits differ.
            "the device": device_report()["platform"],
            "the version of jclnf": [jclnf.__version__, FORMAT, CHUNK],
        }
        if self.units is not None:
            depends["the predictors of action units"] = model_digest(self.units.people.model)
        for what, file in (("the video", path), ("the boxes", settings.boxes)):
            if file is not None:
                depends[what] = source_digest(Path(file))
        self.checkpoint = Checkpoint(checkpoint_of(out, stem), depends)
        self._grown = {ending: out / f"{stem}{ending}" for ending in _GROWING}
        self._pts = self._aligned = self._masked = out
        self._descriptors: DescriptorFile | None = None
        self.beside = False
        """Whether there is an earlier table, which stays until `put_in_place`."""
        self._last = Frame(0, 0.0, None)

    def _make_fitter(self, path: Path | None) -> TrackingFitter | IndependentFitter:
        settings = self.settings
        names = ("arithmetic", "iterations")
        changes = {name: getattr(settings, name) for name in names if getattr(settings, name)}
        params = self.model.defaults.replace(**changes)
        most = 1 if settings.one else settings.faces
        if settings.independent:
            return IndependentFitter(
                self.model,
                params,
                make_detector(settings.detector),
                most,
                min_face=settings.min_face,
                cuts=self._seeks_cuts,
            )
        boxes = self._boxes
        detector = None
        if settings.boxes is None:
            detector = make_detector(settings.detector)
        elif path is not None:
            boxes |= FrameBoxTable(settings.boxes).boxes(path)
            if not boxes:
                raise BoxError(f"{settings.boxes}: holds no boxes for {path}")
        tracker = Tracker(
            self.model,
            TrackParams.of(dataclasses.replace(self.model, defaults=params)),
            detector=detector,
            min_face=settings.min_face,
            cuts=self._seeks_cuts,
            single=settings.one,
            max_faces=most,
        )
        return TrackingFitter(tracker, boxes)

    def perform(
        self,
        *,
        resume: bool,
        every: float = CHECKPOINT_SECONDS,
        on_frame: OnFrame | None = None,
        on_start: Callable[[int, int | None], None] | None = None,
    ) -> Counts:
        """Read the video and write the table, and what comes with each frame.

        Args:
            resume: go on from the checkpoint, if there is one.
            every: seconds between checkpoints.
            on_frame: see `OnFrame`.
            on_start: called with the number of frames that are done already, and how many there
                will be in all, None if nobody knows.

        Raises:
            VideoError: no frame lies between the times that the settings give, or as
                `Checkpoint.load`.
            OutputError: as `Checkpoint.load`.
            OSError: the results cannot be written.
        """
        first, begin, offset, ended = 1, 0.0, 0, False
        units_offset = 0
        saved = self.checkpoint.load() if resume else None
        if saved is not None:
            arrays, numbers = saved
            first, begin, offset = numbers["frame"], numbers["time"], numbers["offset"]
            self.counts = Counts(**numbers["counts"])
            ended, units_offset = numbers["ended"], numbers["units"]
            own = {name for name in arrays if name.startswith(_PEOPLE)}
            self._fitter.restore({n: array for n, array in arrays.items() if n not in own})
            if self.units is not None:
                self.units.people.restore({n.removeprefix(_PEOPLE): arrays[n] for n in own})
        else:
            self.checkpoint.remove()
        if on_start is not None:
            on_start(self.counts.frames, self.source.expected(self._selection()))
        table, descriptors = self.grow(resume=saved is not None)
        self._last = Frame(first - 1, begin, None)
        if self.units is not None:
            self.units.open(units_offset)
        with table.open("r+b" if table.exists() else "wb") as file:
            # A table whose action units may be the final ones already is as long as it is.
            offset = file.seek(0, os.SEEK_END) if ended else offset
            file.truncate(offset)
            file.seek(offset)
            if offset == 0:
                file.write(self.table.header.encode())
                self._save(file)
            last = time.monotonic()
            with Prefetcher(self.selected_frames(first, begin)) as frames:
                for chunk in _chunks(frames):
                    self._last, going = self._do_chunk(chunk, file, on_frame)
                    if not going:
                        break
                    if time.monotonic() - last >= every:
                        self._save(file)
                        last = time.monotonic()
            self._save(file, ended=True)
        if self._descriptors is not None:
            self._descriptors.close()
        if self.counts.frames == 0 and self.settings.begin > 0:
            self.withdraw()
            if not self.beside:
                table.unlink()
                if self._descriptors is not None:
                    descriptors.unlink(missing_ok=True)
                for folder in (self._pts, self._aligned, self._masked):
                    with contextlib.suppress(OSError):  # there are earlier ones, or none are asked
                        folder.rmdir()
            raise VideoError(f"--from {self.settings.begin:g} lies beyond its end")
        if self.units is not None:
            self.units.finish(table, self.table)
        return self.counts

    def grow(self, *, resume: bool) -> tuple[Path, Path]:
        """Where the table and the descriptors are written, and all that grows with them; see
        `jclnf.outputs.growing`."""
        table, descriptors, *folders = (
            growing(path, resume=resume) for path in self._grown.values()
        )
        self._pts, self._aligned, self._masked = folders
        for folder in self.images.values():
            folder.mkdir(exist_ok=True)
        if self.settings.hog:
            self._descriptors = DescriptorFile(descriptors, self.counts.rows)
        self.beside = table != self.path
        return table, descriptors

    @property
    def images(self) -> dict[str, Path]:
        """The folders that are filled with the table, by how their names end in the end."""
        folders = zip(_FOLDERS, (self._pts, self._aligned, self._masked), strict=True)
        return {e: folder for e, folder in folders if getattr(self.settings, _FOLDERS[e])}

    def unused_boxes(self) -> list[int]:
        """The frames that boxes were given for and that the video, read to its end, has not."""
        if self.settings.end is not None:
            return []
        return [frame for frame in self._boxes if frame > self._last.number]

    def withdraw(self) -> None:
        """Leave what was there before the run, and nothing beside it."""
        self.checkpoint.remove()
        if self.units is not None:
            self.units.remove()
        for path in self._grown.values():
            abandon(path)

    def put_in_place(self) -> None:
        """Put the table and the images in place of those of an earlier run."""
        for path in self._grown.values():
            settle(path)

    def clean_up(self) -> None:
        """Remove what is not needed once all is complete, files half written by killed runs too."""
        self.withdraw()
        for ending in _DERIVED:
            discard(self.out / f"{self.stem}{ending}")
        for ending in _FOLDERS:
            for part in self._grown[ending].glob(".*.part.*"):
                part.unlink(missing_ok=True)

    def selected_frames(self, first: int = 1, begin: float = 0.0) -> Iterator[Frame]:
        """The frames that the settings choose, from number `first` and the time `begin` on."""
        return self.source.frames(self._selection(first, begin))

    def _selection(self, first: int = 1, begin: float = 0.0) -> Selection:
        settings = self.settings
        end = math.inf if settings.end is None else settings.end
        return Selection(first, max(begin, settings.begin), end, settings.every)

    def _save(self, file: BinaryIO, *, ended: bool = False) -> None:
        file.flush()
        os.fsync(file.fileno())
        if self._descriptors is not None:
            self._descriptors.sync()
        numbers = {
            "frame": self._last.number + 1,
            "time": self._last.time,
            "offset": file.tell(),
            "counts": vars(self.counts),
            "ended": ended,
            "units": 0 if self.units is None else self.units.sync(),
        }
        people = {} if self.units is None else self.units.people.state()
        arrays = {f"{_PEOPLE}{name}": array for name, array in people.items()}
        self.checkpoint.save(self._fitter.state() | arrays, numbers)

    def _do_chunk(
        self, chunk: Iterator[Frame], file: BinaryIO, on_frame: OnFrame | None
    ) -> tuple[Frame, bool]:
        """Follow the faces through a chunk and write their rows; the last frame, and False if the
        run was ended."""
        frames: list[Frame] = []
        found: list[list[TrackedFace]] = []
        told: list[dict[int, FrameUnits]] = []
        cuts: list[int | None] = []
        going = True
        for frame, faces in self._fitter.fit_frames(chunk):
            self._write_images(frame, faces)
            told.append({} if self.units is None else self.units.people.step(frame.image, faces))
            if self.settings.masked:
                for number, one in told[-1].items():
                    write_face(self._masked, frame.number, number, one)
            going = on_frame is None or on_frame(frame, faces)
            # A chunk of large images would fill the memory.
            frames.append(dataclasses.replace(frame, image=None))
            found.append(faces)
            cuts.append(int(self._fitter.cut) if self._seeks_cuts else None)
            if self._fitter.cut:
                self.counts.cuts.append(frame.number)
            if frame.image is None:
                self.counts.unreadable_frames.append(frame.number)
            if not going:
                break
        results = [face.result for faces in found for face in faces]
        measured = iter(measure_faces(results, self.camera))
        lines = []
        as_openface, single = self.settings.openface_csv, self.settings.one
        # OpenFace's program for several faces writes nothing of a frame without one.
        empty_rows = self.settings.empty_rows and (single or not as_openface)
        kept: list[KeptUnits] = []
        for frame, faces, units, cut in zip(frames, found, told, cuts, strict=True):
            mark = () if as_openface else (cut,)
            for face in faces:
                confidence = face.confidence
                if confidence is None and as_openface:
                    # Without any means to tell, a fit that did not fail is as good as it gets.
                    confidence = float(face.success)
                start = (frame.number, face.id, frame.time, confidence, int(face.success), *mark)
                numbers = next(measured)
                # The numbers of a fit that failed are not those of the face.
                shown = numbers if face.success or as_openface else None
                kept.append(KeptUnits(face.id, units.get(face.id), has_row=True))
                lines.append(self.table.row(start, shown, kept[-1].shown(shown is not None)))
                self.counts.rows_with_success += face.success
            if not faces:
                self.counts.frames_without_face += 1
                # A single person is judged by all frames, whether or not they have rows.
                kept.append(KeptUnits(0, units.get(0), has_row=empty_rows))
                if empty_rows:
                    nobody = (frame.number, 0 if single else None, frame.time, None, 0, *mark)
                    lines.append(self.table.row(nobody, None, kept[-1].shown(as_openface)))
        self.counts.frames += len(frames)
        self.counts.rows += len(lines)
        file.write("".join(lines).encode())
        file.flush()
        if self.units is not None:
            self.units.append(kept)
        if self._descriptors is not None:
            for row in kept:
                if row.has_row:
                    self._descriptors.append(row.units)
        return frames[-1], going

    def _write_images(self, frame: Frame, faces: list[TrackedFace]) -> None:
        if frame.image is None:
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
                image = aligned_face(frame.image, landmarks, mean, self.settings.aligned)
                write_png(self._aligned / f"{name}.png", image, **one_of_many)


def _chunks(frames: Iterable[Frame]) -> Iterator[Iterator[Frame]]:
    """Frames in the chunks that their numbers give, whatever the first one is."""
    for _, chunk in groupby(frames, key=lambda frame: (frame.number - 1) // CHUNK):
        yield chunk
