"""All results of one video: the run over it, what is made of its table, and its metadata."""

import csv
import functools
import io
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jclnf
from jclnf.errors import JclnfError, OutputError, VideoError
from jclnf.fitting import Model
from jclnf.images import names
from jclnf.outputs import check_same, locked, make_folder, write_bytes
from jclnf.runtime import device_report
from jclnf.video._derived import write_parquet, write_plot, write_smoothed
from jclnf.video._open import open_source
from jclnf.video._overlay import write_overlay
from jclnf.video._run import CHECKPOINT_SECONDS, OnFrame, Run, checkpoint_of
from jclnf.video._segments import folder_of, join, name_of, remove, segments
from jclnf.video._settings import Settings, model_digest
from jclnf.video._source import ImageFolder, Source


@dataclass
class JobResult:
    """How the processing of a video went, in a line or a few; the results are in files."""

    path: str
    summary: str = ""
    problems: list[str] = field(default_factory=list)
    """A line for each thing that could not be done."""


OnStart = Callable[[Source, int, int | None], None]
"""Called with the source before its first frame, with how many of its frames are done already and
how many there will be in all, None if nobody knows."""


def load(settings: Settings) -> Model:
    """The model of a run, with its parts and its validator where they are asked for and there.

    Raises:
        ModelFileError: there is no such model.
    """
    from jclnf.files import find_model
    from jclnf.openface import main_file, offers

    path = find_model(settings.model or "default")
    if path.suffix == ".safetensors":
        return jclnf.load_model(path)
    there = offers(main_file(path))
    return jclnf.load_openface(
        path,
        parts=settings.parts and there["parts"],
        validator=settings.validator and there["validator"],
    )


def process_video(
    settings: Settings,
    model: Model,
    path: str,
    out: Path,
    stem: str,
    *,
    resume: bool = False,
    every: float = CHECKPOINT_SECONDS,
    wait: float = 0.2,
    source: Source | None = None,
    on_frame: OnFrame | None = None,
    on_start: OnStart | None = None,
) -> JobResult:
    """Make all results of a video; `process_videos` is what to call with several.

    What cannot be done is said in the result: nothing is raised.

    Args:
        settings, model: see `Settings` and `load`.
        path: the video, or folder of images.
        out, stem: the folder of the results, and the first part of their names; both are claimed.
        resume: go on with a run that was ended; one that is complete is left as it is.
        every: seconds between checkpoints.
        wait: seconds to wait for another process that is at the same results.
        source: the opened video, if it is no file.
        on_frame: called after each frame with it and its faces; returns False to end the run.
        on_start: see `OnStart`.
    """
    done = JobResult(path)
    try:
        with locked(out / f"{stem}.csv", wait=wait):
            source = open_source(path, rate=settings.rate) if source is None else source
            run = Run(settings, model, source, out, stem)
            metadata = out / f"{stem}.json"
            before = _metadata(metadata)
            if resume and _complete(metadata, before, run):
                remove(out, stem)
                done.summary = f"complete already, in {run.path}"
                return done
            if not resume:
                remove(out, stem)
            start = time.monotonic()
            begins: list[float] = []
            if parts := segments(settings, source):
                told = [
                    process_segment(
                        settings, model, path, out, stem, number,
                        every=every, wait=wait, on_frame=on_frame, on_start=on_start,
                    ).problems
                    for number in range(len(parts))
                ]  # fmt: skip
                begins = join(run, source, parts, folder_of(out, stem), told)
            else:
                run.perform(
                    resume=resume,
                    every=every,
                    on_frame=on_frame,
                    on_start=None if on_start is None else functools.partial(on_start, source),
                )
            counts = run.counts
            seconds = time.monotonic() - start
            if counts.rows_with_success == 0 and run.beside and before.get("rows_with_success", 1):
                run.withdraw()
                raise VideoError(f"no face was found; {run.path} is left as it was")
            metadata.unlink(missing_ok=True)
            run.put_in_place()
            found = [*source.problems, *_unused(settings, run, source)]
            failed = _derive(settings, run, source)
            done.problems += [*(f"{path}: {problem}" for problem in found), *failed]
            if isinstance(source, ImageFolder):
                _write_image_names(source, out / f"{stem}_images.csv")
            description = describe(model, run, source) | {
                # Without it the run is not complete, and goes on where it is resumed.
                **({} if failed else {"depends": run.checkpoint.depends}),
                **asdict(counts),
                "problems": [*found, *failed],
                "segments": begins,
                "seconds": round(seconds, 3),
            }
            write_bytes(metadata, (json.dumps(description, indent=1) + "\n").encode())
            if not failed:
                run.clean_up()
                remove(out, stem)
            part = counts.rows_with_success / counts.rows if counts.rows else 0.0
            done.summary = (
                f"{counts.frames} frames, {counts.rows} rows, {100 * part:.1f} % with success, "
                f"in {run.path}"
            )
            if counts.frames_without_face == counts.frames:
                done.problems.append(f"{path}: no face was found")
    except JclnfError as error:
        text = str(error)
        done.problems.append(text if path in text else f"{path}: {text}")
    except OSError as error:
        done.problems.append(f"{out}: cannot be written: {error.strerror or error}")
    except Exception as error:
        # A night's other videos must not wait for whatever this is.
        done.problems.append(f"{path}: stopped by an error in jclnf: {error!r}")
    return done


def unfinished(out: Path, stem: str) -> bool:
    """Whether there is something of a run that was ended, for another to go on with."""
    return checkpoint_of(out, stem).exists() or folder_of(out, stem).exists()


def forget(out: Path, stem: str) -> None:
    """Have the next run begin anew even if it is told to go on with what was ended.

    Raises:
        OutputError: another process is at it.
    """
    with locked(out / f"{stem}.csv"):
        checkpoint_of(out, stem).unlink(missing_ok=True)
        remove(out, stem)


def count_segments(settings: Settings, path: str) -> int:
    """Into how many segments a video is cut; 0 if into none, or if it cannot be read."""
    if settings.segment is None:
        return 0
    try:
        return len(segments(settings, open_source(path, rate=settings.rate)))
    except VideoError:
        return 0


def process_segment(
    settings: Settings,
    model: Model,
    path: str,
    out: Path,
    stem: str,
    number: int,
    **options: Any,
) -> JobResult:
    """Make the table of a segment of a video, if it is not there; `process_video` then joins them.

    Args:
        settings, model, path, out, stem: as for `process_video`.
        number: of the segment, from 0.
        options: as for `process_video`.
    """
    folder = folder_of(out, stem)
    try:
        part = segments(settings, open_source(path, rate=settings.rate))[number]
        make_folder(folder)
    except JclnfError as error:
        return JobResult(path, problems=[str(error)])
    return process_video(part, model, path, folder, name_of(number), **options | {"resume": True})


def _derive(settings: Settings, run: Run, source: Source) -> list[str]:
    """Make what follows from the table; one that fails does not keep the others from it.

    Returns:
        A line for each that failed.
    """
    table, failed = run.path, []
    makers: list[tuple[Any, str, Callable[[Path], None]]] = [
        (
            settings.smooth,
            "_smoothed.csv",
            lambda out: write_smoothed(table, out, str(settings.smooth), run.table),
        ),
        (settings.parquet, ".parquet", lambda out: write_parquet(table, out)),
        (settings.plot, ".png", lambda out: write_plot(table, out)),
        (
            settings.overlay,
            "_overlay.mp4",
            lambda out: write_overlay(table, run.selected_frames(), source, settings.begin, out),
        ),
    ]
    for wanted, ending, make in makers:
        out = run.out / f"{run.stem}{ending}"
        try:
            if wanted:
                make(out)
        except ImportError:
            failed.append(
                f"{out}: the plot needs matplotlib: pip install 'jclnf[plots]', or --no-plot"
            )
        except JclnfError as error:
            failed.append(str(error))
    return failed


def _unused(settings: Settings, run: Run, source: Source) -> list[str]:
    """A line for each thing that was given for this video and could not be used."""
    lines = []
    if settings.rate is not None and source.rate != settings.rate:
        lines.append("--rate is for folders of images: its own time stamps were used")
    if frames := run.unused_boxes():
        text = names([str(frame) for frame in frames])
        lines.append(f"{settings.boxes} has boxes in frames that it does not have: {text}")
    return lines


def _write_image_names(source: ImageFolder, out: Path) -> None:
    """The image of each frame, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "image"])
    writer.writerows(zip(source.numbers, (file.name for file in source.files), strict=True))
    write_bytes(out, text.getvalue().encode(errors="surrogateescape"))


def _metadata(path: Path) -> dict[str, Any]:
    """What an earlier run said of its results; nothing if there was none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _complete(path: Path, metadata: dict[str, Any], run: Run) -> bool:
    """Whether these are the metadata of a complete run with the same settings; what a killed one
    has left of it is removed then.

    Raises:
        OutputError: they are those of another run, and this one has left nothing to go on with.
    """
    if not metadata:
        return False
    try:
        check_same(path, metadata.get("depends"), run.checkpoint.depends)
    except OutputError:
        if run.checkpoint.path.exists():
            return False  # of a run that was to replace that one
        run.clean_up()  # nobody can go on with one that was ended before its first checkpoint
        raise
    with suppress(OutputError):  # another run's, which somebody may go on with
        with suppress(VideoError):
            run.checkpoint.load()
        run.clean_up()
    return True


def describe(model: Model, run: Run, source: Source) -> dict[str, Any]:
    """Everything that a result can be understood and made again by, for its metadata."""
    import av
    import cv2
    import jax
    import numpy as np

    return {
        "source": str(getattr(source, "path", source.name)),
        "size": list(source.size),
        "frame_rate": source.rate,
        **getattr(source, "properties", {}),
        "camera": run.camera.numbers,
        "model": {"name": model.name, "digest": model_digest(model)},
        **({} if run.units is None else {"action_units": run.units.people.model.name}),
        "settings": asdict(run.settings),
        "device": device_report(),
        "versions": {
            "jclnf": jclnf.__version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pyav": av.__version__,
            "ffmpeg": av.ffmpeg_version_info,
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
