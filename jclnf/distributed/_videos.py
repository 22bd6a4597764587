"""Videos on a Ray cluster: each is a piece of work, done as `jclnf video` does it anywhere."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jclnf.distributed._cluster import TRIES, cluster, each
from jclnf.errors import JclnfError, VideoError
from jclnf.files import find_model
from jclnf.outputs import write_bytes
from jclnf.video import (
    CHECKPOINT_SECONDS,
    JobResult,
    Settings,
    claim_results,
    count_segments,
    forget,
    is_camera,
    load,
    process_segment,
    process_video,
    unfinished,
)

REPORT = "report.csv"
_COLUMNS = ("video", "table", "status", "frames", "rows", "rows_with_success", "problems")
_WAIT = 60.0
"""Seconds that the processes of a run that was just killed have to end."""


def process_videos(
    settings: Settings,
    paths: list[str],
    out: Path,
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    resume: bool = False,
    every: float = CHECKPOINT_SECONDS,
) -> Iterator[JobResult]:
    """Make the results of several videos on a Ray cluster, and tell how each went.

    They are those of `jclnf.video.process_videos` with several workers, byte for byte. All machines
    must have jclnf, and the videos, the model's file and the results' folder under the same paths.
    A video whose process is killed goes on in another. When all are done, `report.csv` beside the
    results has a row for each video, with what was wrong.

    Args:
        settings: what to do, and with which model.
        paths: videos and folders of images; no cameras.
        out: folder of the results.
        address: of the cluster, `HOST:PORT` or `auto`; without it the one that `RAY_ADDRESS` names,
            or else one of this machine alone, for the time.
        workers: videos that are done at the same time; as many as the cluster has devices if not
            given.
        device: `cpu`, `gpu`, or a GPU if the cluster has one.
        resume: go on with what was ended; what is complete is left as it is.
        every: seconds between checkpoints.

    Yields:
        A result for each video. What cannot be done of one is said there.

    Raises:
        ModelFileError, ParamsError, OutputError: as there.
        ClusterError: Ray is not installed, no cluster answers, or it failed.
        VideoError: a camera is among the videos.
    """
    for camera in filter(is_camera, paths):
        raise VideoError(f"camera {camera}: cameras are of one machine, and not for a cluster")
    find_model(settings.model or "default")
    with cluster(address):
        jobs = claim_results(settings, paths, out, fixed=(REPORT,))
        if not resume:
            for _, stem in jobs:
                forget(out, stem)
        arguments = settings, out, resume, every
        parts = [
            (path, stem, number)
            for path, stem in jobs
            for number in range(count_segments(settings, path))
        ]
        # What went wrong with one is found again, and told, where they are joined.
        for _ in each(_SegmentWorker, arguments, parts, workers=workers, device=device):
            pass
        rows: list[list[Any]] = [[]] * len(jobs)
        for at, done in each(_Worker, arguments, jobs, workers=workers, device=device):
            path, stem = jobs[at]
            result = _result(path, done)
            rows[at] = _row(path, out / f"{stem}.json", result)
            yield result
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
        write_bytes(out / REPORT, text.getvalue().encode(errors="surrogateescape"))


class _Worker:
    """Does videos, with the model loaded once."""

    def __init__(self, settings: Settings, out: Path, resume: bool, every: float) -> None:
        self._settings, self._out, self._resume, self._every = settings, out, resume, every
        self._model = load(settings)

    def __call__(self, job: tuple[str, str]) -> JobResult:
        path, stem = job
        return process_video(
            self._settings,
            self._model,
            path,
            self._out,
            stem,
            # What is unfinished is this run's own, from a process that was killed.
            resume=self._resume or unfinished(self._out, stem),
            every=self._every,
            wait=_WAIT,
        )


class _SegmentWorker(_Worker):
    """Does segments of videos."""

    def __call__(self, job: tuple[str, str, int]) -> JobResult:  # type: ignore[override]
        path, stem, number = job
        return process_segment(
            self._settings,
            self._model,
            path,
            self._out,
            stem,
            number,
            every=self._every,
            wait=_WAIT,
        )


def _result(path: str, done: JobResult | JclnfError | None) -> JobResult:
    if isinstance(done, JobResult):
        return done
    why = f"its process was ended {TRIES} times, for want of memory perhaps" if done is None else ""
    return JobResult(path, problems=[f"{path}: {why or done}"])


def _row(path: str, metadata: Path, done: JobResult) -> list[Any]:
    """A row of the report; it is the same whenever the video was done."""
    if not done.summary:
        return [path, "", "failed", "", "", "", "; ".join(done.problems)]
    found = json.loads(metadata.read_bytes())
    problems = list(found["problems"])
    if found["frames_without_face"] == found["frames"]:
        problems.append("no face was found")
    counts = [found[name] for name in _COLUMNS[3:6]]
    status = "incomplete" if problems else "done"
    return [path, f"{metadata.stem}.csv", status, *counts, "; ".join(problems)]
