"""Fixtures that the whole suite shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# The suite compiles many small programs once each: unoptimised they compile in half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

REPOSITORY = Path(__file__).resolve().parent.parent


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


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_programs() -> Iterator[None]:
    """Each compiled program takes memory maps, of which a process may have only so many: without
    this, the whole suite in one process ends in a segmentation fault. The command line's tests
    also turn the persistent cache on, which later modules do not need."""
    yield
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    jax.clear_caches()
