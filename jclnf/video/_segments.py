"""A long video in segments, each of which begins with a detection, as if it were one of its own."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from jclnf.errors import VideoError
from jclnf.outputs import write_bytes
from jclnf.video._run import Counts, Run
from jclnf.video._settings import Settings
from jclnf.video._source import Selection, Source


def folder_of(out: Path, stem: str) -> Path:
    """Where the results of a video's segments are until it is complete."""
    return out / f".{stem}.segments"


def name_of(number: int) -> str:
    """The first part of the names of a segment's results."""
    return f"{number:05}"


def segments(settings: Settings, source: Source) -> list[Settings]:
    """The settings for each segment of a video; none if it is not to be cut into several.

    They have the length that the settings ask for, but for the last one, which is at least half as
    long, and at most half as long again.
    """
    if settings.segment is None:
        return []
    end = math.inf if settings.end is None else settings.end
    frames = source.expected(Selection(begin=settings.begin, end=end))
    count = round((frames or 0) / source.rate / settings.segment)
    if count < 2:
        return []
    starts = [settings.begin + number * settings.segment for number in range(count)]
    ends = [*(math.nextafter(start, 0.0) for start in starts[1:]), settings.end]
    tables = dataclasses.replace(
        settings, segment=None, overlay=False, parquet=False, plot=False, smooth=None
    )
    return [
        dataclasses.replace(tables, begin=start, end=end)
        for start, end in zip(starts, ends, strict=True)
    ]


def join(
    run: Run, source: Source, parts: list[Settings], folder: Path, told: list[list[str]]
) -> list[float]:
    """Write a run's table and images from those of its segments; faces get numbers of their own in
    each.

    Args:
        run, source: of the whole video.
        parts: the settings for each segment.
        folder: where their results are.
        told: what was said of each.

    Returns:
        The times, in seconds, at which they begin.

    Raises:
        VideoError: the results of one are not there.
    """
    table, _ = run.grow(resume=False)
    header, first = run.table.header.encode(), 0
    begins: list[float] = []
    problems: list[str] = []
    counts: dict[str, Any] = dataclasses.asdict(Counts())
    with table.open("wb") as file:
        file.write(header)
        for number, part in enumerate(parts):
            found = _metadata(folder / f"{name_of(number)}.json")
            if found is None:
                if next(iter(source.frames(Selection(begin=part.begin))), None) is None:
                    break  # it is shorter than it says
                why = "; ".join(told[number])
                raise VideoError(f"its segment from {part.begin:g} s on is missing: {why}")
            begins.append(part.begin)
            problems += found["problems"]
            counts = {name: counts[name] + found[name] for name in counts}
            if hasattr(source, "properties"):
                source.properties["deinterlaced"] |= found["deinterlaced"]
            last = -1
            with (folder / f"{name_of(number)}.csv").open("rb") as rows:
                if rows.readline() != header:
                    raise VideoError(
                        f"the table of its segment from {part.begin:g} s on is damaged"
                    )
                for line in rows:
                    frame, face, rest = line.split(b",", 2)
                    if face.strip() and not run.settings.one:
                        last = max(last, int(face))
                        face = face.replace(face.strip(), b"%d" % (first + int(face)))
                    file.write(b",".join((frame, face, rest)))
            for ending, out in run.images.items():
                offset = 0 if run.settings.one else first
                _copy_images(folder / f"{name_of(number)}{ending}", out, offset)
            first += last + 1
    run.counts = Counts(**counts)
    source.problems = list(dict.fromkeys(problems))
    return begins


def remove(out: Path, stem: str) -> None:
    """Remove the results of a video's segments."""
    shutil.rmtree(folder_of(out, stem), ignore_errors=True)


def _copy_images(source: Path, out: Path, first: int) -> None:
    """Copy the images of faces, or their landmarks, with numbers from `first` on."""
    for file in sorted(source.glob("[!.]*")):
        frame, _, face = file.stem.partition("_")
        name = f"{frame}_{first + int(face)}{file.suffix}"
        write_bytes(out / name, file.read_bytes(), lock=False, sync=False)


def _metadata(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    except (OSError, ValueError):
        return None
