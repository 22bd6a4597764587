"""Files that are put in place whole, and written by one process at a time.

A file `name.ext` is built as `.name.part.ext` in the same folder, while `.name.ext.lock` keeps
other processes from it. Only a process that was ended leaves either behind; the next one that
writes the same file takes them over.

What takes long grows where it belongs if nothing is there yet, so that it can be watched, and else
beside it: what was there before stays until the new is whole (`growing`, `settle`).
"""

import errno
import os
import platform
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from jclnf.errors import OutputError

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""How file systems (of networks, mostly) say that they know no locks: everybody may write there."""


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder for outputs, and those that it is in, if need be. Raises OutputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


@contextmanager
def locked(path: str | os.PathLike[str], *, wait: float = 0.2) -> Iterator[None]:
    """Be the only process that writes a file, and whatever else goes by its name.

    For outputs that take long, such as a table that grows row by row; `replacing` takes the lock
    by itself.

    Args:
        path: the file.
        wait: seconds to wait for another process to be done with it.

    Raises:
        OutputError: another process has the lock (it is named), or the folder cannot be written.
    """
    path = Path(path)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    with _naming(path):
        path.parent.stat()  # the lock would make the folder
        try:
            # Not 0: whoever comes upon a lock that is just being removed tries again.
            lock.acquire(timeout=wait, poll_interval=0.02)
        except Timeout:
            owner = "another process"
            with suppress(OSError):  # Windows lets nobody read it
                owner = file.read_text(errors="replace") or owner
            raise OutputError(f"{path}: is being written by {owner}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    try:
        with suppress(OSError):
            file.write_text(_this_process(), errors="surrogateescape")
        yield
    finally:
        # Before the lock is released: who opened the file meanwhile sees that it is gone.
        with suppress(OSError):  # Windows removes it at the release
            file.unlink()
        lock.release()


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, keep: bool = False, lock: bool = True, sync: bool = True
) -> Iterator[Path]:
    """Build a file beside its destination, and put it in place when the block has ended.

    A block that raises leaves what was there before, and so does a process that is killed. The
    file gets the permissions of any new file.

        with replacing("model.safetensors") as part:
            save(part)

    Args:
        path: the destination.
        keep: what a killed process or a block that raised had written is still there when the
            next one begins, as for a download that goes on.
        lock: False for one of the many files of a run that holds a lock itself.
        sync: wait until the file is on the disk, so that it is whole even after a power cut.

    Yields:
        Where to write: an empty file of the same ending.

    Raises:
        OutputError: it cannot be written, or another process is writing it.
    """
    path = Path(path)
    part = part_of(path)
    with locked(path) if lock else nullcontext(), _naming(path):
        try:
            with part.open("ab" if keep else "wb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield part
            part.chmod(mode)  # some writers bring a file of their own
            if sync:
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                if not keep or part.stat().st_size == 0:
                    part.unlink()
            raise


def growing(path: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """Where an output that takes long is built, a file or a folder; `settle` puts it in place.

    Args:
        path: where it belongs. Hold a lock that covers it.
        resume: go on with what was left there; else that is removed.
    """
    path = Path(path)
    part = part_of(path)
    if not resume:
        abandon(path)
    beside = part.exists() if resume else path.exists()
    return part if beside else path


def settle(path: str | os.PathLike[str]) -> None:
    """Put in place what was built beside `path`, if it was; see `growing`. Raises OutputError."""
    path = Path(path)
    part = part_of(path)
    with _naming(path):
        if part.exists():
            if path.is_dir():
                shutil.rmtree(path)
            part.replace(path)


def abandon(path: str | os.PathLike[str]) -> None:
    """Remove what was built beside `path`; what is there stays. Raises OutputError."""
    path = Path(path)
    part = part_of(path)
    with _naming(path):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def appending(
    path: str | os.PathLike[str],
    header: bytes,
    *,
    resume: bool = False,
    worth: Callable[[], bool] = lambda: True,
) -> Iterator[Callable[[bytes], None]]:
    """Write a file that grows, and is whole after each row; see `growing`.

    What was there before stays until the block has ended, and for good if no row has come. A block
    that raises leaves its rows where they are, to go on with. Hold the file's lock.

    Args:
        path: the file.
        header: its beginning; all of it, if nothing follows and there was no file before.
        resume: go on with what was left.
        worth: asked in the end whether this may take the place of what was there before.

    Yields:
        The function that appends.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path)
    place = growing(path, resume=resume)
    with ExitStack() as stack:
        file: BinaryIO | None = None

        def append(data: bytes) -> None:
            nonlocal file
            with _naming(path):
                if file is None:
                    if not (resume and place.exists()):
                        write_bytes(place, header, lock=False)
                    file = stack.enter_context(place.open("ab"))
                file.write(data)
                file.flush()

        if not path.exists() and not place.exists():
            write_bytes(place, header, lock=False)
        yield append
        if file is not None:
            with _naming(path):
                os.fsync(file.fileno())
    (settle if worth() else abandon)(path)


def write_bytes(
    path: str | os.PathLike[str], data: bytes, *, lock: bool = True, sync: bool = True
) -> None:
    """Write a file whole; see `replacing`."""
    with replacing(path, lock=lock, sync=sync) as part:
        part.write_bytes(data)


def write_png(
    path: str | os.PathLike[str], image: np.ndarray, *, lock: bool = True, sync: bool = True
) -> None:
    """Write an image, `(h, w)` or `(h, w, 3)` uint8 in OpenCV's order, whole; see `replacing`."""
    import cv2

    write_bytes(path, cv2.imencode(".png", image)[1].tobytes(), lock=lock, sync=sync)


def discard(path: str | os.PathLike[str]) -> None:
    """Remove what a killed process left that was writing a file; not what a living one writes."""
    path = Path(path)
    with suppress(OutputError), locked(path):
        part_of(path).unlink(missing_ok=True)


def _this_process() -> str:
    """Who writes: the process, since when, and its command, on one line."""
    now = datetime.now().isoformat(" ", "seconds")
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    command = shlex.join([name, *sys.argv[1:]])
    shown = command if len(command) < 200 else f"{command[:200]}..."
    return f"process {os.getpid()} on {platform.node()} since {now}: {shown}"


def part_of(path: Path) -> Path:
    """What a file or folder is called while it is built."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have a failure to write `path` raise an OutputError that names it; others pass."""
    try:
        yield
    except OSError as error:
        named = path if error.filename is None else Path(error.filename)
        if error.errno is None or path.parent not in (named, named.parent):
            raise
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
