"""Fixtures that the whole suite shares."""

import gc
import importlib.metadata
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

# The suite compiles more than it computes: without optimisations, and with the older of XLA's two
# ways to emit fused loops (which jaxlib 0.11 no longer has), a fit compiles in a third of the time;
# in one part, which costs no thread's time twice, in an eighth less again. Some commands have one
# thread for each device: all have it here, or JAX would take their programs for others.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS += " --xla_cpu_multi_thread_eigen=false"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)

REPOSITORY = Path(__file__).resolve().parent.parent

# Importing and tracing make many small objects that live on: a fifth of the time of tracing went
# into looking for ones that can go.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    """Modules, workers and processes that tests start share what one of them has compiled."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="jclnf-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker begins one when the others have ended."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    gc.freeze()
    gc.set_threshold(100_000, 20, 10)
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data: OpenFace's models and recordings of its C++ fits."""
    folder = Path(os.environ.get("JCLNF_TEST_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "openface").is_dir():
        pytest.skip(f"needs the development data, not found at {folder} (set JCLNF_TEST_DATA)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same for each run of a test."""
    return np.random.default_rng(20)


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks that tests add, which come before the modules' own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True, scope="module")
def _one_context_of_mlir() -> Iterator[None]:
    """All programs of a module are lowered in one context (of each thread): to make one, with its
    dialects, takes a quarter of the time that the many small programs of tests take."""
    from jax._src.interpreters import mlir

    make, kept = mlir.make_ir_context, threading.local()

    def one() -> object:
        if not hasattr(kept, "context"):
            kept.context = make()
        return kept.context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlir, "make_ir_context", one)
        yield


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    """Each compiled program takes memory, and memory maps, of which a process may have only so many
    (65,530 on most systems): without this, the whole suite in one process ends in a segmentation
    fault. Before that modules share what is compiled, and otherwise the folder of
    `pytest_configure`, wherever a test has moved the cache."""
    yield
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from jclnf.runtime import keep_traces

    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_text().count("\n") > 15_000:
        jax.clear_caches()
        gc.unfreeze()
    # What is left of a module is looked through once, and not again.
    gc.collect()
    gc.freeze()
    # What a command in this process has begun; tests may put other functions in place of jclnf's.
    keep_traces(None)
    if jax.config.jax_compilation_cache_dir != os.environ["JAX_COMPILATION_CACHE_DIR"]:
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        compilation_cache.reset_cache()
