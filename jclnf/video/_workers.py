"""Several videos, one after the other or at the same time in processes of their own."""

import os
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jclnf.errors import JclnfError, VideoError
from jclnf.files import find_model
from jclnf.fitting import Model
from jclnf.images import Found, kind_of, near_input
from jclnf.outputs import Origin, claim, make_folder
from jclnf.runtime import (
    enable_compilation_cache,
    keep_to_one_core,
    share_device,
    use_device,
)
from jclnf.video import _source
from jclnf.video._job import JobResult, OnStart, load, process_video
from jclnf.video._run import CHECKPOINT_SECONDS, OnFrame, endings
from jclnf.video._settings import Settings, source_digest


def find_videos(paths: Iterable[str]) -> Found[str]:
    """The videos that paths name.

    A folder stands for the videos in it and in the folders within; if there are none, for each
    of these folders that holds images, as frames of a video. What runs of jclnf have written there
    is left out.
    """
    found = Found[str]()
    for text in paths:
        path, named = Path(text), [text]
        if path.is_dir():
            folder = found.look_through(path, deep=True)
            if folder is None:
                continue
            if folder.videos:
                named = [str(video) for video in folder.videos]
                found.notes += folder.left_out("videos", ("images beside videos", folder.images))
            elif folder.images:
                named = sorted({str(image.parent) for image in folder.images})
                found.notes += folder.left_out("images")
            else:
                found.problems.append(f"{path}: no videos and no images in this folder")
                found.notes += folder.left_out("videos")
                continue
        elif not path.exists() and not is_camera(text):
            found.problems.append(f"{path}: no such file{near_input(path, _is_video, _is_seen)}")
            continue
        found.add(named)
    return found


def _is_video(path: Path) -> bool:
    return kind_of(path) == "video"


def _is_seen(path: Path) -> bool:
    return kind_of(path) in ("image", "video")


def process_videos(
    settings: Settings,
    paths: list[str],
    out: Path,
    *,
    workers: int = 1,
    device: str | None = None,
    resume: bool = False,
    every: float = CHECKPOINT_SECONDS,
    on_start: OnStart | None = None,
    on_frame: OnFrame | None = None,
) -> Iterator[JobResult]:
    """Make the results of several videos, and tell how each went as soon as it is done.

    Recording from a camera ends with Ctrl-C.

    Args:
        settings: what to do, and with which model.
        paths: files, folders of images, or numbers of cameras; each once, see `find_videos`.
        out: folder of the results; it is made if need be. They are called as the videos, and get a
            number where that name is taken (see `jclnf.outputs.claim`); each result says which.
        workers: videos that are done at the same time, each in a process of its own if more than
            one. On one GPU they share the memory that a single process would take.
        device: `cpu`, `gpu`, or the number of a GPU; as JAX has it if not given.
        resume: go on with runs that were ended; those that are complete are left as they are.
        every: seconds between checkpoints.
        on_start: called before the first frame, see `OnStart`; with several workers in each
            worker's process, which a pickle of it is sent to.
        on_frame: called after each frame, see `OnFrame`; sent likewise.

    Yields:
        A result for each video. What cannot be done of one is said there.

    Raises:
        ModelFileError, ParamsError: there is no such model or device; nothing is written then. Of
            a device, or a damaged model, several workers say so in each result.
        OutputError: `out` cannot be written.
        VideoError: an overlay is asked for of a camera.
    """
    if settings.overlay and any(map(is_camera, paths)):
        raise VideoError("--overlay reads a video twice: it cannot be had of a camera")
    model = None
    if workers > 1 and len(paths) > 1:
        find_model(settings.model or "default")
    else:
        model = _begin(settings, device)
    jobs = claim_results(settings, paths, out)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # a run says itself that there is no camera
    options = {"resume": resume, "every": every, "on_start": on_start, "on_frame": on_frame}
    if model is None:
        return _in_processes(settings, jobs, out, min(workers, len(jobs)), device, options)
    return _in_turn(settings, model, jobs, out, options)


def claim_results(
    settings: Settings, paths: list[str], out: Path, *, fixed: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Each video with the first part of its results' names in a folder, which is made if need be.

    Args:
        settings, paths, out: as for `process_videos`.
        fixed: names of files that are about all videos.

    Raises:
        OutputError: `out` cannot be written.
    """
    make_folder(out)
    wanted, others = endings(settings)
    stems = claim(
        out,
        "video",
        fixed=fixed,
        sources=list(map(_origin, paths)),
        stems=list(map(_stem, paths)),
        endings=wanted,
        spared=others,
        inputs=[*paths, *([] if settings.boxes is None else [settings.boxes])],
    )
    return list(zip(paths, stems, strict=True))


def _begin(settings: Settings, device: str | None) -> Model:
    """Choose what computes, and load the model."""
    if device is not None:
        use_device(device)
    return load(settings)


def is_camera(path: str) -> bool:
    """Whether this is the number of a camera, and not a file of such a name."""
    return path.isdecimal() and not Path(path).exists()


def _stem(path: str) -> str:
    """What the names of a video's results begin with, if nothing else has that name."""
    if is_camera(path):
        return f"camera{path}"
    where = Path(path).resolve()
    return (where.name if where.is_dir() else where.stem) or "frames"


def _origin(path: str) -> Origin:
    """How a video is known when its results are met again."""
    digest = ""
    with suppress(OSError):
        digest = source_digest(Path(path))
    return Origin("video", os.path.abspath(path), digest)


def _in_turn(
    settings: Settings,
    model: Model,
    jobs: Iterable[tuple[str, str]],
    out: Path,
    options: dict[str, Any],
) -> Iterator[JobResult]:
    for path, stem in jobs:
        if not is_camera(path):
            yield process_video(settings, model, path, out, stem, **options)
            continue
        try:
            camera = _source.Camera(int(path))
        except JclnfError as error:
            yield JobResult(path, problems=[str(error)])
            continue
        with _until_interrupted(options.get("on_frame")) as on_frame:
            yield process_video(
                settings,
                model,
                path,
                out,
                stem,
                **options | {"source": camera, "on_frame": on_frame},
            )


@contextmanager
def _until_interrupted(on_frame: OnFrame | None) -> Iterator[OnFrame]:
    """`on_frame`, which also ends the run after the first Ctrl-C; a second one interrupts.

    A camera has no end of its own, so Ctrl-C is that.
    """
    interrupted = threading.Event()

    def note(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield on_frame or (lambda *_: True)  # which cannot handle signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield (
            lambda frame, faces: (
                not interrupted.is_set() and (on_frame is None or on_frame(frame, faces))
            )
        )
    finally:
        signal.signal(signal.SIGINT, before)


def _in_processes(
    settings: Settings,
    jobs: list[tuple[str, str]],
    out: Path,
    count: int,
    device: str | None,
    options: dict[str, Any],
) -> Iterator[JobResult]:
    import jax

    cache: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    workers = [
        _Worker(settings, out, device, options, cache, share_device(count)) for _ in range(count)
    ]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def one(job: tuple[str, str]) -> JobResult:
        worker = free.get()
        try:
            return worker.do(*job)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(count) as threads:
        try:
            for future in as_completed([threads.submit(one, job) for job in jobs]):
                yield future.result()
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A process that does videos, one after the other; another takes its place if it is killed."""

    def __init__(self, *work: Any) -> None:
        self._work = work  # what `_serve` takes
        self._lock = threading.Lock()
        self._ended = False
        self._process: Any = None
        self._connection: Any = None

    def do(self, path: str, stem: str) -> JobResult:
        """Do a video; if the process is killed over it, that is said in the result."""
        with self._lock:
            if self._ended:
                return JobResult(path)
            if self._process is None:
                self._begin()
        try:
            self._connection.send((path, stem))
            done: JobResult = self._connection.recv()
            return done
        except (EOFError, OSError):
            self._process = None
            ended = "its process was ended by the system, for want of memory perhaps"
            return JobResult(path, problems=[f"{path}: {ended}: go on with --resume"])

    def end(self) -> None:
        """End the process, and begin no other."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.terminate()

    def _begin(self) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._work), daemon=True)
        self._process.start()
        theirs.close()


def _serve(
    connection: Any,
    settings: Settings,
    out: Path,
    device: str | None,
    options: dict[str, Any],
    cache: str | None,
    environment: dict[str, str],
) -> None:
    """Do the videos that are asked for, in a process of its own."""
    # Ctrl-C goes to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_to_one_core()
    os.environ.update(environment)
    if cache is not None:
        enable_compilation_cache(cache)

    def jobs() -> Iterator[tuple[str, str]]:
        with suppress(EOFError):
            while True:
                yield connection.recv()

    try:
        for done in _in_turn(settings, _begin(settings, device), jobs(), out, options):
            connection.send(done)
    except JclnfError as error:  # of the model or the device
        for path, _ in jobs():
            connection.send(JobResult(path, problems=[f"{path}: {error}"]))


def _end_with_parent() -> None:
    """End this process when the one that began it is killed: its files are somebody else's then."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(130)
