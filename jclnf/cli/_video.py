"""`jclnf video`: from videos to the tables that people analyse."""

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jclnf.cli._base import INCOMPLETE, INTERRUPTED, OK, CommandError, complain, printable
from jclnf.cli._camera import add_camera, camera_numbers
from jclnf.errors import JclnfError

if TYPE_CHECKING:
    from jclnf.video import Done, Settings, Source

_EPILOG = """\
output, for a video NAME:
  DIR/NAME.csv             OpenFace 2.2's table, written as it goes: a row for each face that is
                           followed in each frame (with --one, a row for each frame). face_id stays
                           with a face; success 0 means that the face was not seen there. Gaze needs
                           OpenFace's eye models (--model); action units are not computed: columns
                           of what is not there are left out
  DIR/NAME.png             confidence, pose and some landmarks over time
  DIR/NAME.json            settings, versions, model, camera, and what was wrong; written last
  and on request NAME.parquet, NAME_smoothed.csv, NAME_overlay.mp4, NAME_pts/, NAME_aligned/
Frames are counted from 1. Time is that of the file's own time stamps, from the first frame.

A run that was ended (even by a power cut) goes on with --resume and the same options; its results
are the same, byte for byte, as those of a run that was not.

exit code:
  0  all videos were read to their end
  1  something could not be done, and a line says what; everything else was
  2  nothing could be done: wrong usage, no model, no place to write
  130  interrupted; go on with --resume

examples:
  jclnf video interview.mp4 --out results
  jclnf video recordings/ --out results --one --workers 2 --resume
  jclnf video clip.avi --out results --model clnf_general --detector mtcnn --overlay
  jclnf video frames/ --out results --rate 25
  jclnf video 0 --out results                            a camera
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    p = subparsers.add_parser(
        "video",
        help="follow the faces of videos: landmarks, head pose and gaze as tables",
        description="Follow the faces of videos, and write landmarks, head pose and gaze as tables "
        "like those of OpenFace's FeatureExtraction.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(run=run)
    p.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a video; a folder of videos, or of numbered pictures; or the number of a camera",
    )
    p.add_argument(
        "--out", metavar="DIR", default="videos", help="where to write (default: videos)"
    )
    p.add_argument("--model", metavar="PATH", help="as for `jclnf fit`")
    p.add_argument("--no-parts", action="store_true", help="without OpenFace's eyes and inner face")
    p.add_argument("--no-validator", action="store_true", help="without OpenFace's validator")
    p.add_argument("--resume", action="store_true", help="go on with a run that was ended")
    p.add_argument(
        "--workers", type=int, default=1, metavar="N", help="videos done at the same time"
    )
    p.add_argument("--quiet", action="store_true", help="print errors only")

    faces = p.add_argument_group("which faces (default: all that are found)")
    which = faces.add_mutually_exclusive_group()
    which.add_argument("--one", action="store_true", help="one, as OpenFace's FeatureExtraction")
    which.add_argument("--faces", type=int, metavar="N", help="at most N at a time")
    found = faces.add_mutually_exclusive_group()
    found.add_argument(
        "--detector", default="haar", metavar="NAME", help="as for `jclnf fit` (default: haar)"
    )
    found.add_argument(
        "--boxes",
        metavar="CSV",
        help="where faces begin, in place of a detector: the columns frame, x, y, w, h and, for "
        "several videos, video",
    )
    faces.add_argument(
        "--independent",
        action="store_true",
        help="detect and fit in each frame by itself: slower and less steady, but no error goes "
        "from one frame to the next",
    )

    time = p.add_argument_group("time and camera")
    time.add_argument("--from", dest="begin", type=float, default=0.0, metavar="S", help="seconds")
    time.add_argument("--to", dest="end", type=float, metavar="S", help="seconds")
    time.add_argument(
        "--rate", type=float, help="frames per second of a folder of pictures (default: 30)"
    )
    add_camera(time)

    results = p.add_argument_group("results")
    results.add_argument(
        "--full-precision", action="store_true", help="all digits instead of OpenFace's decimals"
    )
    results.add_argument("--parquet", action="store_true", help="the table as Parquet as well")
    results.add_argument(
        "--smooth",
        metavar="one-euro[:MINCUTOFF,BETA]",
        help="a second table, smoothed by the One-Euro filter; the first one keeps the raw values. "
        "Not for tremor",
    )
    results.add_argument("--overlay", action="store_true", help="the video with the faces drawn in")
    results.add_argument("--pts", action="store_true", help="a .pts file for each face and frame")
    results.add_argument(
        "--aligned",
        type=int,
        nargs="?",
        const=112,
        default=0,
        metavar="SIDE",
        help="a picture of each face and frame, turned and sized alike (default side: 112)",
    )
    results.add_argument("--no-plot", action="store_true", help="without NAME.png")

    from jclnf.cli._settings import add_numbers

    add_numbers(p.add_argument_group("the fit (default: as the model was trained)"))
    p.add_argument("--checkpoint-every", type=float, default=5.0, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Do all videos; return the exit code that the help describes."""
    settings = _settings(args)
    out = Path(args.out)
    paths, problems = _sources(args.sources)
    for problem in problems:
        complain(problem)
    if not paths:
        return INCOMPLETE
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{out}: cannot be written: {error.strerror or error}") from error
    jobs = list(zip(paths, _stems(paths), strict=True))
    for path, stem in jobs if args.overlay else ():
        if _is_camera(path):
            raise CommandError("--overlay reads a video twice: it cannot be had of a camera")
        overlay = out / f"{stem}_overlay.mp4"
        if any(os.path.realpath(overlay) == os.path.realpath(other) for other in paths):
            raise CommandError(
                f"{overlay}: would be written over, and is to be read: give another --out"
            )
    if args.workers > 1 and len(jobs) > 1:
        failed = _in_processes(args, settings, out, jobs)
    else:
        failed = _in_turn(args, settings, out, jobs)
    return INCOMPLETE if failed or problems else OK


def _settings(args: argparse.Namespace) -> "Settings":
    """The options as settings. Raises CommandError for those that cannot be."""
    from jclnf.video import Settings, one_euro

    focal, centre = camera_numbers(args)
    if args.independent and args.boxes is not None:
        raise CommandError("--independent needs the boxes of every frame: use --detector")
    for name in ("workers", "faces"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise CommandError(f"--{name} must be at least 1")
    if args.aligned and not 8 <= args.aligned <= 4096:
        raise CommandError("--aligned: the side lies between 8 and 4096 pixels")
    try:
        if args.smooth is not None:
            one_euro(args.smooth)
        return Settings(
            model=args.model,
            parts=not args.no_parts,
            validator=not args.no_validator,
            arithmetic=args.arithmetic,
            iterations=args.iterations,
            detector=args.detector,
            boxes=args.boxes,
            one=args.one,
            faces=args.faces,
            independent=args.independent,
            begin=args.begin,
            end=args.end,
            rate=args.rate,
            focal=focal,
            centre=centre,
            full_precision=args.full_precision,
            pts=args.pts,
            aligned=args.aligned,
            overlay=args.overlay,
            parquet=args.parquet,
            smooth=args.smooth,
            plot=not args.no_plot,
        )
    except JclnfError as error:
        raise CommandError(str(error)) from error


def _sources(texts: list[str]) -> tuple[list[str], list[str]]:
    """The videos that arguments name, each once, and a line for each argument with none."""
    from jclnf.images import IMAGE_SUFFIXES
    from jclnf.video import VIDEO_SUFFIXES

    found: dict[str, str] = {}
    problems = []
    for text in texts:
        path, paths = Path(text), [text]
        if path.is_dir():
            try:
                files = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            except OSError as error:
                problems.append(f"{path}: cannot be read: {error.strerror or error}")
                continue
            paths = [str(p) for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
            if not paths and any(p.suffix.lower() in IMAGE_SUFFIXES for p in files):
                paths = [text]
            if not paths:
                problems.append(f"{path}: no videos and no pictures in this folder")
        for one in paths:
            found.setdefault(os.path.abspath(one), one)
    return list(found.values()), problems


def _stems(paths: list[str]) -> list[str]:
    """A name for the results of each video; equal ones are numbered."""
    taken: set[str] = set()
    stems = []
    for path in paths:
        name = f"camera{path}" if _is_camera(path) else Path(path).resolve().name
        base = name if Path(path).is_dir() or _is_camera(path) else Path(name).stem
        stem, number = base, 1
        # Some file systems do not tell upper case from lower.
        while stem.casefold() in taken:
            number += 1
            stem = f"{base}_{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _is_camera(path: str) -> bool:
    return path.isdecimal() and not Path(path).exists()


def _prepare(settings: "Settings", share: int) -> Any:
    """Set the process up, and load the model."""
    # FFmpeg writes of every damaged packet; what matters, a run says itself.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    # A file that is a list of other files must not lead anywhere.
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")
    import cv2

    import jclnf
    from jclnf.video import load

    if share > 1:
        cv2.setNumThreads(1)
    jclnf.enable_compilation_cache()
    try:
        return load(settings)
    except JclnfError as error:
        raise CommandError(str(error)) from error


def _in_turn(
    args: argparse.Namespace, settings: "Settings", out: Path, jobs: list[tuple[str, str]]
) -> bool:
    """Do the videos one after the other; return whether anything failed."""
    model = _prepare(settings, 1)
    failed = False
    for path, stem in jobs:
        done = _one(args, settings, model, out, path, stem)
        failed = _tell(args, done) or failed
    return failed


def _one(
    args: argparse.Namespace, settings: "Settings", model: Any, out: Path, path: str, stem: str
) -> "Done":
    """Do a video with a progress bar."""
    from tqdm import tqdm

    from jclnf.cli._live import Window
    from jclnf.video import Camera, Done, do_video

    source: Source | None = None
    window = None
    if _is_camera(path):
        try:
            camera = Camera(int(path))
        except JclnfError as error:
            return Done(path, problems=[str(error)])
        source, window = camera, Window(camera.name)
        if window.problem:
            complain(window.problem)
    bar = tqdm(desc=stem, unit=" frames", disable=args.quiet or None, leave=False)

    def begun(source: "Source", done: int) -> None:
        bar.reset(source.count)
        bar.initial = bar.n = done

    interrupted = threading.Event()

    def told(frame: Any, faces: Any) -> bool:
        bar.update(1)
        return not interrupted.is_set() and (window is None or window.show(frame, faces))

    # A camera has no end of its own, so Ctrl-C is that.
    with bar, nullcontext() if source is None else _noticed(interrupted):
        return do_video(
            settings,
            model,
            path,
            out,
            stem,
            resume=args.resume,
            every=args.checkpoint_every,
            source=source,
            told=told,
            begun=begun,
        )


@contextmanager
def _noticed(interrupted: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C only be noted; a second one interrupts."""

    def note(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _in_processes(
    args: argparse.Namespace, settings: "Settings", out: Path, jobs: list[tuple[str, str]]
) -> bool:
    """Do several videos at the same time; return whether anything failed."""
    # As many threads as cores in each process would only wait for each other.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    options = {"resume": args.resume, "every": args.checkpoint_every}
    workers = [_Worker(settings, out, options) for _ in range(min(args.workers, len(jobs)))]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def one(job: tuple[str, str]) -> "Done":
        worker = free.get()
        try:
            return worker.do(*job)
        finally:
            free.put(worker)

    failed = False
    with ThreadPoolExecutor(len(workers)) as threads:
        try:
            for future in as_completed([threads.submit(one, job) for job in jobs]):
                failed = _tell(args, future.result()) or failed
        finally:
            for worker in workers:
                worker.end()
    return failed


class _Worker:
    """A process that does videos, one after the other; another takes its place if it is killed."""

    def __init__(self, settings: "Settings", out: Path, options: dict[str, Any]) -> None:
        self._work = settings, out, options
        self._lock = threading.Lock()
        self._ended = False
        self._process: Any = None
        self._connection: Any = None

    def do(self, path: str, stem: str) -> "Done":
        """Do a video; if the process is killed over it, that is said in the result."""
        from jclnf.video import Done

        with self._lock:
            if self._ended:
                return Done(path)
            if self._process is None:
                self._begin()
        try:
            self._connection.send((path, stem))
            done: Done = self._connection.recv()
            return done
        except (EOFError, OSError):
            self._process = None
            ended = "its process was ended by the system, for want of memory perhaps"
            return Done(path, problems=[f"{path}: {ended}: go on with --resume"])

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


def _serve(connection: Any, settings: "Settings", out: Path, options: dict[str, Any]) -> None:
    """Do the videos that are asked for, in a process of its own."""
    from jclnf.video import Done, do_video

    # Ctrl-C goes to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    problem = None
    try:
        model = _prepare(settings, 2)
    except CommandError as error:
        problem = str(error)
    while True:
        try:
            path, stem = connection.recv()
        except EOFError:
            return
        if problem is not None:
            connection.send(Done(path, problems=[f"{path}: {problem}"]))
        else:
            connection.send(do_video(settings, model, path, out, stem, **options))


def _end_with_parent() -> None:
    """End this process when the one that began it is killed: its files are somebody else's then."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(INTERRUPTED)


def _tell(args: argparse.Namespace, done: "Done") -> bool:
    """Print how a video went; return whether anything failed."""
    for problem in done.problems:
        complain(problem)
    if done.summary and not args.quiet:
        print(printable(f"{done.path}: {done.summary}"), flush=True)
    sys.stdout.flush()
    return bool(done.problems)
