"""Times of work, also beside an estimate of OpenFace's C++ fit at the same moment."""

import functools
import importlib.util
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from experiments.common import DATA


def timed(work: Callable[[], Any]) -> float:
    """Seconds until everything that the work returns is computed."""
    start = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(work()))
    return time.perf_counter() - start


@functools.cache
def _calibrate() -> ModuleType:
    path = DATA / "bench" / "calibrate.py"
    spec = importlib.util.spec_from_file_location("calibrate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cpp_fit(repeats: int = 10, *, processor: bool = False) -> float:
    """Seconds of a C++ fit on this machine now, estimated by work that was timed beside it once.

    Args:
        repeats: of that work.
        processor: seconds of the processor, where others use it too; else those that pass.
    """
    calibrate = _calibrate()
    start = time.process_time()
    passed = calibrate.unit(repeats)
    taken = (time.process_time() - start) / repeats
    return calibrate.RATIO * (taken if processor else passed)
