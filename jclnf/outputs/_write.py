"""Files that are put in place whole, and written by one process at a time.

A file `name.ext` is built as `.name.part.ext` in the same folder, while `.name.ext.lock` keeps
other processes from it. Only a killed process leaves either behind; the next one that writes the
same file takes them over.
"""

import errno
import os
import platform
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only process that writes a file, and whatever else goes by its name.

    For outputs that take long, such as a table that grows row by row; `replacing` takes the lock
    by itself.

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
            lock.acquire(timeout=0.2, poll_interval=0.02)
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
            file.write_text(f"process {os.getpid()} on {platform.node()}")
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
    part = _part_of(path)
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


@contextmanager
def appending(path: str | os.PathLike[str], header: bytes) -> Iterator[Callable[[bytes], None]]:
    """Write a file that grows, and is whole after each row: what has been written stays.

    What was there before stays until the first row comes.

    Args:
        path: the file.
        header: its beginning; all of it, if nothing follows and there was no file before.

    Yields:
        The function that appends.

    Raises:
        OutputError: it cannot be written, or another process is writing it.
    """
    path = Path(path)
    file: BinaryIO | None = None

    def append(data: bytes) -> None:
        nonlocal file
        with _naming(path):
            if file is None:
                write_bytes(path, header + data, lock=False)
                file = path.open("ab", buffering=0)
            else:
                file.write(data)

    with locked(path):
        if not path.exists():
            write_bytes(path, header, lock=False)
        try:
            yield append
        finally:
            if file is not None:
                file.close()


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
        _part_of(path).unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
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
