"""The compilation cache, processor cores, and what native libraries print."""

import glob
import hashlib
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jclnf.runtime._kept import keep_traces


def enable_compilation_cache(path: str | os.PathLike[str] | None = None) -> str | None:
    """Let JAX keep compiled programs on disk, so that the next process need not compile them.

    Call it before the first computation; importing jclnf does not do it for you. Files there that
    cannot be read, as a power cut leaves them, are removed when JAX comes upon them, instead of
    its warning.

    Args:
        path: The folder. By default what JAX is already set to (`JAX_COMPILATION_CACHE_DIR`), else
            `jclnf/jax` under the user's cache folder, with a folder in it for each version of
            jaxlib and kind of processor: JAX's own keys tell neither all processors nor all
            versions apart, and code for another processor ends the process.

    Returns:
        The folder, or None if none can be written, in which case JAX compiles without a cache.
    """
    import jax

    already: str | None = getattr(jax.config, "jax_compilation_cache_dir", None)
    folder = os.fspath(path) if path is not None else already
    if folder is None:
        own = _default_cache()
        folder = None if own is None else str(own)
    folder = folder or None  # JAX's environment variable turns its cache off by an empty name
    # JAX takes URLs of object stores too; those it must try itself.
    if folder is not None and "://" not in folder and not _writable(Path(folder)):
        folder = None
    jax.config.update("jax_compilation_cache_dir", folder)
    keep_traces(None if folder is None or "://" in folder else Path(folder))
    if folder is not None:
        _mend_cache(folder)
        # A command is many small programs and one large: together the small ones matter too.
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def _mend_cache(folder: str) -> None:
    """Remove the files of the cache that JAX warns it cannot read, in place of the warning.

    JAX never replaces a file that is there: it would warn, and compile anew, in every process.
    """
    unread = "Error reading persistent compilation cache entry for '"
    show = warnings.showwarning

    def remove_or_show(message: Any, *where: Any, **options: Any) -> None:
        text = str(message)
        if not text.startswith(unread) or "://" in folder:
            show(message, *where, **options)
            return
        # It names the program, with which the names of its files begin.
        program = text.removeprefix(unread).partition("'")[0]
        for path in Path(folder).glob(f"{glob.escape(program)}-*"):
            with suppress(OSError):
                path.unlink()

    # Those of programs that nobody asks for any more would stay for ever.
    for path in () if "://" in folder else Path(folder).glob("*-cache"):
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
    # Whatever the user's filters, since nothing is shown.
    warnings.filterwarnings("always", message=unread)
    warnings.showwarning = remove_or_show


def use_all_cores(most: int) -> None:
    """Have a device of JAX's for each processor core, at most `most`, as `fit_images` can use them.

    Only before the first computation; later, or where the user has said how many, it does nothing.
    """
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with suppress(RuntimeError):  # JAX is running already
        jax.config.update("jax_num_cpu_devices", min(available_cores(), most))


def available_cores() -> int:
    """How many processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on all systems
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def use_one_thread_each() -> None:
    """Have each device of XLA's use one thread, where there are as many of them, or of processes,
    as cores: more would only wait for each other. Only before the first computation."""
    flags, own = os.environ.get("XLA_FLAGS", "").split(), "--xla_cpu_multi_thread_eigen=false"
    # Not twice: JAX would take programs of its cache for others.
    if own not in flags:
        os.environ["XLA_FLAGS"] = " ".join([*flags, own])


_OWN_THREADS = "NPROC"
"""Of the environment: how many threads XLA has at most."""


def keep_to_one_core() -> None:
    """Have this process compute in one thread, as one of several that share a machine: as many
    threads as cores in each would only wait for each other. Call it before the first computation.
    """
    import cv2

    use_one_thread_each()
    os.environ[_OWN_THREADS] = "1"
    cv2.setNumThreads(1)


def own_threads() -> int:
    """How many threads libraries may use in this process; 0 if they are to choose."""
    text = os.environ.get(_OWN_THREADS, "")
    return int(text) if text.isascii() and text.isdecimal() else 0


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what the process writes to file descriptor 2 meanwhile.

    For native libraries that print there and report their errors otherwise as well. It holds for
    all threads, so it is for programs, not for libraries.
    """
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no stderr to silence
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _default_cache() -> Path | None:
    """Return jclnf's own cache folder, or None if the user has no home."""
    import jaxlib
    import platformdirs

    try:
        root = platformdirs.user_cache_path("jclnf", appauthor=False)
    except RuntimeError:
        return None
    return root / "jax" / f"{jaxlib.__version__}-{_processor()}"


def _processor() -> str:
    """Return a short name for the instruction set that XLA compiles for on this machine."""
    features = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
            # x86 and ARM call the line of instruction-set features differently.
            wanted = ("model name", "flags", "Features", "CPU part")
            features += "".join(sorted({line for line in f if line.startswith(wanted)}))
    except OSError:
        pass  # no Linux
    digest = hashlib.sha256(features.encode()).hexdigest()[:12]
    return f"{platform.machine() or 'unknown'}-{digest}"


def _writable(folder: Path) -> bool:
    """Return whether files can be written in `folder`, which is created if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, ValueError):
        return False
