"""`jclnf video`: from videos to the tables that people analyse."""

from typing import Any

import jclnf
from jclnf import distributed
from jclnf.annotations import FrameBoxTable
from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._commands import Video
from jclnf.cli._live import Window
from jclnf.cli._settings import announce
from jclnf.runtime import Meter, say
from jclnf.video import Camera, Source, find_videos, process_videos


def run(options: Video) -> int:
    """Do all videos; return the exit code that the help describes."""
    if options.workers is not None and options.workers < 1:
        raise CommandError("--workers must be at least 1")
    found = find_videos(options.sources)
    for problem in found.problems:
        complain(problem)
    notes = found.notes
    if options.settings.boxes is not None:
        notes += FrameBoxTable(options.settings.boxes).left_out(found.files)
    for note in () if options.quiet else notes:
        complain(note)
    if not found.files:
        return INCOMPLETE
    jclnf.enable_compilation_cache()
    failed = bool(found.problems)
    workers = options.workers or 1
    with _Display(options, lines=workers > 1) as display:
        common: dict[str, Any] = {
            "device": options.device,
            "resume": options.resume,
            "every": options.checkpoint_every,
        }
        work = options.settings, found.files, options.out
        if options.ray is None:
            each = process_videos(
                *work,
                workers=workers,
                on_start=display.start,
                on_frame=display.show,
                **common,
            )
        else:
            each = distributed.process_videos(
                *work, address=options.ray, workers=options.workers, **common
            )
            each = Meter("all", len(found.files), unit="videos", quiet=options.quiet).over(each)
        for done in each:
            display.end()
            for problem in done.problems:
                complain(problem)
            if done.summary and not options.quiet:
                say(printable(f"{done.path}: {done.summary}"))
            failed = failed or bool(done.problems)
    return INCOMPLETE if failed else OK


class _Display:
    """How far a video is, and the window of a camera; in the process that does the video."""

    def __init__(self, options: Video, lines: bool) -> None:
        self._quiet, self._compiling, self._lines = options.quiet, options.compiling, lines
        self._meter: Meter | None = None
        self._window: Window | None = None

    def start(self, source: Source, done: int, total: int | None) -> None:
        """Begin with a video of which some frames are done already."""
        self.end()
        announce(self._quiet, self._compiling)
        name = printable(source.name)
        self._meter = Meter(
            name, total, done=done, unit="frames", quiet=self._quiet, lines=self._lines
        )
        if isinstance(source, Camera):
            self._window = Window(source.name)
            if self._window.problem:
                complain(self._window.problem)

    def show(self, frame: Any, faces: Any) -> bool:
        """Show a frame; False once the user has closed the window."""
        if self._meter is not None:
            self._meter.step()
        return self._window is None or self._window.show(frame, faces)

    def end(self) -> None:
        """Remove what is shown of a video."""
        if self._meter is not None:
            self._meter.close()
        self._meter = self._window = None

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
