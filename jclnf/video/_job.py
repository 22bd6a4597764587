"""All results of one video: the run over it, what is made of its table, and its metadata."""

import functools
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jclnf
from jclnf.errors import JclnfError, VideoError
from jclnf.fitting import Model
from jclnf.outputs import write_bytes
from jclnf.video._derived import draw_summary, draw_video, write_parquet, write_smoothed
from jclnf.video._run import CHECKPOINT_SECONDS, Run, Told
from jclnf.video._settings import Settings, model_digest
from jclnf.video._source import Source, open_source


@dataclass
class Done:
    """How a video went."""

    path: str
    summary: str = ""
    problems: list[str] = field(default_factory=list)
    """A line for each thing that could not be done."""


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


def do_video(
    settings: Settings,
    model: Model,
    path: str,
    out: Path,
    stem: str,
    *,
    resume: bool = False,
    every: float = CHECKPOINT_SECONDS,
    source: Source | None = None,
    told: Told | None = None,
    begun: Callable[[Source, int], None] | None = None,
) -> Done:
    """Make all results of a video; what cannot be done is said in the result.

    Args:
        settings, model: what to do, and with which model.
        path: the video, or folder of pictures.
        out, stem: where the results go, and the first part of their names.
        resume: go on with a run that was ended; one that is complete is left as it is.
        every: seconds between checkpoints.
        source: the opened video, if it is no file.
        told: see `jclnf.video._run.Told`.
        begun: called with the source and the number of its frames done already.
    """
    done = Done(path)
    try:
        source = open_source(path, rate=settings.rate) if source is None else source
        run = Run(settings, model, source, out, stem)
        metadata = out / f"{stem}.json"
        if resume and _complete(metadata, run.checkpoint.digest):
            run.tidy()
            done.summary = "complete already"
            return done
        metadata.unlink(missing_ok=True)
        start = time.monotonic()
        record = run.perform(
            resume=resume,
            every=every,
            told=told,
            begun=None if begun is None else functools.partial(begun, source),
        )
        seconds = time.monotonic() - start
        done.problems += [f"{path}: {problem}" for problem in source.problems]
        _derive(settings, run, source, done)
        description = describe(settings, model, run, source) | {
            "digest": run.checkpoint.digest,
            "frames": record.frames,
            "rows": record.rows,
            "rows_with_success": record.seen,
            "unreadable_frames": record.unreadable,
            "problems": source.problems,
            "seconds": round(seconds, 3),
        }
        write_bytes(metadata, (json.dumps(description, indent=1) + "\n").encode())
        run.tidy()
        part = record.seen / record.rows if record.rows else 0.0
        done.summary = (
            f"{record.frames} frames, {record.rows} rows, {100 * part:.1f} % with success"
        )
        if record.rows == 0:
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


def _derive(settings: Settings, run: Run, source: Source, done: Done) -> None:
    """Make what follows from the table; one that fails does not keep the others from it."""
    table, out, stem = run.path, run.out, run.stem
    makers: list[tuple[bool, Callable[[], None]]] = [
        (
            settings.smooth is not None,
            lambda: write_smoothed(
                table, out / f"{stem}_smoothed.csv", settings.smooth or "", run.table.forms
            ),
        ),
        (settings.parquet, lambda: write_parquet(table, out / f"{stem}.parquet")),
        (settings.plot, lambda: draw_summary(table, out / f"{stem}.png")),
        (
            settings.overlay,
            lambda: draw_video(
                table, run.used(), source.rate, source.size, out / f"{stem}_overlay.mp4"
            ),
        ),
    ]
    for wanted, make in makers:
        if not wanted:
            continue
        try:
            make()
        except ImportError:
            done.problems.append(
                f"{out / stem}.png: the plot needs matplotlib: pip install 'jclnf[plots]', or "
                "--no-plot"
            )
        except JclnfError as error:
            done.problems.append(str(error))


def _complete(metadata: Path, digest: str) -> bool:
    """Whether these are the metadata of a complete run with the same settings.

    Raises:
        VideoError: they are those of another run.
    """
    try:
        found = json.loads(metadata.read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if found != digest:
        raise VideoError(
            f"{metadata}: the complete run there had other settings, another model, video or "
            "version of jclnf: give the same, another --out, or run without --resume to begin again"
        )
    return True


def describe(settings: Settings, model: Model, run: Run, source: Source) -> dict[str, Any]:
    """What a result can be understood and made again by."""
    import cv2
    import jax
    import numpy as np

    return {
        "source": str(getattr(source, "path", source.name)),
        "size": list(source.size),
        "frame_rate": source.rate,
        "camera": run.camera.numbers,
        "model": {"name": model.name, "digest": model_digest(model)},
        "settings": asdict(settings),
        "versions": {
            "jclnf": jclnf.__version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
