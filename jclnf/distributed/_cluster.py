"""Work handed to the processes of a Ray cluster, one for each of its devices."""

import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jclnf.errors import ClusterError, JclnfError, ParamsError
from jclnf.runtime import (
    enable_compilation_cache,
    keep_to_one_core,
    silent_stderr,
    use_device,
)

TRIES = 3
"""How often a piece of work is begun, at most, whose process is killed."""
_ANSWERS = 5.0
"""Seconds in which a cluster has to answer."""
_STORE = 2**28
"""Bytes of the object store of a cluster of our own: nothing large goes through it."""


@contextmanager
def cluster(address: str | None = None) -> Iterator[None]:
    """Be connected to a Ray cluster meanwhile; a connection that there is already is used.

    Args:
        address: `HOST:PORT`; `auto` for the cluster that this machine is part of; else the one that
            the environment names (`RAY_ADDRESS`), or one of this machine alone, for the time.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each run
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE}
    try:
        with silent_stderr():  # where it tells that it will not tell
            ray.init(address, **options)
    except (Exception, SystemExit) as error:
        why = next(iter(str(error).splitlines()), "")
        raise ClusterError(f"no Ray cluster at {address}: {why}") from None
    try:
        yield
    finally:
        ray.shutdown()


def each(
    make: Callable[..., Callable[[Any], Any]],
    arguments: Sequence[Any],
    items: Sequence[Any],
    *,
    workers: int | None = None,
    device: str | None = None,
) -> Iterator[tuple[int, Any]]:
    """The results of pieces of work, as they come.

    Each process has a device of its own, a GPU or a processor core, and one piece at a time. A
    piece whose process is killed is begun again in another, up to `TRIES` times.

    Args:
        make: called in each process with `arguments`, once, for the function that does the work;
            where that raises JclnfError, the error is the result of all work.
        items: what that function is called with; what it raises is the result, as JclnfError. All
            of this, and the results, can be pickled.
        workers: processes; as many as the cluster has devices if not given.
        device: `cpu`, `gpu`, or a GPU if there is one.

    Yields:
        The number of an item, with its result; None if its processes were killed.

    Raises:
        ParamsError: the cluster has no such device, or fewer than the workers.
        ClusterError: the cluster failed.
    """
    ray = _ray()
    gpu, there = _devices(ray.cluster_resources(), device)
    if workers is not None and workers > there:
        what = "GPUs" if gpu else "processor cores"
        raise ParamsError(f"{workers} workers: the cluster has {there} {what}")
    if not items:
        return
    rows = [(at, pickle.dumps(item)) for at, item in enumerate(items)]
    begun = ray.remote(num_cpus=0)(_Begun).remote()
    work = pickle.dumps((make, tuple(arguments)))
    needs = {"num_cpus": 1, "num_gpus": 1 if gpu else None}
    process = ray.remote(**needs, max_restarts=-1, max_task_retries=-1)(_Process)
    count = min(workers or there, len(rows))
    processes = [process.remote(work, begun, gpu, os.getcwd()) for _ in range(count)]
    # One piece at a time for each: what is queued behind long work would wait for it.
    pool = ray.util.ActorPool(processes)
    try:
        for number, result in pool.map_unordered(lambda one, row: one.do.remote(*row), rows):
            yield number, pickle.loads(result)
    except ray.exceptions.RayError as error:
        why = next(iter(str(error).splitlines()), "")
        raise ClusterError(f"the Ray cluster failed: {why}") from None


class _Process:
    """A process of the cluster."""

    def __init__(self, work: bytes, begun: Any, gpu: bool, folder: str) -> None:
        with suppress(OSError):  # relative paths mean what they mean to who asked
            os.chdir(folder)
        keep_to_one_core()
        enable_compilation_cache()
        self._begun = begun
        self._error: JclnfError | None = None
        try:
            use_device("gpu" if gpu else "cpu")
            make, arguments = pickle.loads(work)
            self._work = make(*arguments)
        except JclnfError as error:
            self._error = error

    def do(self, number: int, item: bytes) -> tuple[int, bytes]:
        """The number of a piece, with its result."""
        result = self._error
        # Ray begins anew what was killed, without end.
        if result is None and _ray().get(self._begun.again.remote(number)) <= TRIES:
            try:
                result = self._work(pickle.loads(item))
            except JclnfError as error:
                result = error
            except Exception as error:  # all other work must not wait for whatever this is
                result = JclnfError(f"stopped by an error in jclnf: {error!r}")
        return number, pickle.dumps(result)


class _Begun:
    """Counts how often each piece of work was begun, in a process that does none."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def again(self, number: int) -> int:
        """How often this piece was, with this time."""
        self._counts[number] += 1
        return self._counts[number]


def _devices(resources: dict[str, float], device: str | None) -> tuple[bool, int]:
    """Whether the work is for GPUs, and how many processes there can be."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if device not in (None, "cpu", "gpu"):
        raise ParamsError(f"on a cluster a device is cpu or gpu, not {device!r}")
    if device == "gpu" and gpus == 0:
        raise ParamsError("the cluster has no GPU")
    if device != "cpu" and gpus:
        return True, min(gpus, cores)
    if cores == 0:
        raise ParamsError("the cluster has no processor cores")
    return False, cores


def _ray() -> Any:
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise ClusterError(f"Ray cannot be loaded ({error}): pip install 'jclnf[ray]'") from None
    return ray


def _check_answers(address: str) -> None:
    """Raise ClusterError if nothing answers: Ray itself would try for two minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isascii() and port.isdecimal()):
        raise ClusterError(f"{address!r} is no address of a Ray cluster: give HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ClusterError(f"no Ray cluster at {address}: {why}") from None
