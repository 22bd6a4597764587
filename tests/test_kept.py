"""Traces that are kept on disk: what is loaded computes what was traced, and nothing stale is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jclnf
from jclnf.geometry import Pose
from jclnf.runtime import _kept, kept, programs_compiled
from tests.support.synthetic import default_params, planted

POINTS = np.arange(3, dtype=np.float32)
traced = 0


def moved(pose: Any, points: jax.Array, power: Any) -> Any:
    """Something that a program does."""
    global traced
    traced += 1
    return {"points": pose.scale * points**2, "power": power, "nothing": None}


def run(*args: Any) -> tuple[int, Any]:
    """How often a process in which nothing is traced yet traces it, and what it returns."""
    before = traced
    result = eqx.filter_jit(lambda *args: kept(moved)(*args))(*args)
    return traced - before, result


def pose(scale: float) -> Pose:
    arrays = np.array(scale), np.eye(3), np.zeros(2)
    return Pose(*(jnp.asarray(array, jnp.float32) for array in arrays))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = _kept._folder
    _kept.keep_traces(tmp_path)
    yield tmp_path
    _kept.keep_traces(before)


def test_a_second_process_does_not_trace(folder: Path) -> None:
    first, a = run(pose(2), POINTS, 2)
    second, b = run(pose(3), POINTS + 1, 2)
    assert (first, second) == (1, 0)
    assert (a["power"], a["nothing"]) == (b["power"], b["nothing"]) == (2, None)
    np.testing.assert_array_equal(a["points"], 2 * POINTS**2)
    np.testing.assert_array_equal(b["points"], 3 * (POINTS + 1) ** 2)
    assert [path.suffix for path in folder.iterdir()] == [".traced"]


@pytest.mark.parametrize(
    "other",
    [
        (pose(2), POINTS[:2], 2),
        (pose(2), POINTS.astype(np.int32), 2),
        (pose(2), POINTS, 2.0),
        (pose(2), POINTS, None),
        (pose(2), POINTS, "2"),
        ((pose(2).matrix, pose(2)), POINTS, 2),
    ],
)
def test_other_shapes_and_static_values_are_other_programs(
    folder: Path, other: tuple[Any, ...]
) -> None:
    del folder
    assert _kept._describe(other) != _kept._describe((pose(2), POINTS, 2))


def test_settings_sources_and_versions_are_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pose(2), POINTS, 2)
    with jax.default_matmul_precision("float32"):
        assert run(pose(2), POINTS, 2)[0] == 1
    monkeypatch.setattr(_kept, "_sources", lambda: "others")
    assert run(pose(2), POINTS, 2)[0] == 1
    monkeypatch.setattr(jax, "__version__", "0.0")
    assert run(pose(2), POINTS, 2)[0] == 1
    assert len(list(folder.iterdir())) == 4


class Foreign(eqx.Module):
    """A class whose code jclnf does not know."""

    scale: jax.Array


@pytest.mark.parametrize("power", [Foreign(jnp.ones(())), abs, np.float32])
def test_what_is_not_jclnfs_is_traced_each_time(folder: Path, power: Any) -> None:
    for _ in range(2):
        assert run(pose(2), POINTS, power)[0] == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("length", [0, 100, None])
def test_damaged_files_are_replaced(folder: Path, length: int | None) -> None:
    run(pose(2), POINTS, 2)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(b"no trace" if length is None else whole[:length])
    count, result = run(pose(2), POINTS, 2)
    assert count == 1
    np.testing.assert_array_equal(result["points"], 2 * POINTS**2)
    assert path.stat().st_size == len(whole)


def test_callbacks_are_traced_each_time(folder: Path) -> None:
    seen = []

    def watched(points: jax.Array) -> jax.Array:
        jax.debug.callback(seen.append, points)
        return points

    for _ in range(2):
        np.testing.assert_array_equal(eqx.filter_jit(kept(watched))(POINTS), POINTS)
    jax.effects_barrier()
    assert len(seen) == 2
    assert not list(folder.iterdir())


def test_followed_faces_share_their_programs(folder: Path) -> None:
    del folder
    face = planted()
    params = default_params(iterations=1, windows=(7, 0))
    tracker = jclnf.Tracker(face.model, jclnf.TrackParams(params, params))
    image = face.image.astype(np.uint8)
    tracker.step(image, face.box)
    (first,) = tracker.step(image)
    programs_compiled()
    before = programs_compiled()
    state = tracker.state()
    tracker.restore(state)
    (second,) = tracker.step(image)
    assert programs_compiled() == before
    assert first.id == second.id


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    _kept.keep_traces(folder / "missing")
    assert run(pose(2), POINTS, 2)[0] == 1


def test_fits_are_the_same_and_derivatives_pass(folder: Path) -> None:
    face, params = planted(), default_params(iterations=6)
    image = face.image.astype(np.uint8)
    crop = jclnf.crop(image, face.box)
    _kept.keep_traces(None)
    plain = jclnf.fit(face.model, jnp.asarray(crop.image), crop.box, params).shifted(crop.offset)
    _kept.keep_traces(folder)
    result = jclnf.fit(face.model, image, face.box, params)
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["fit_face_at"]
    np.testing.assert_allclose(result.landmarks, plain.landmarks, atol=1e-3)
    assert result.message == plain.message

    def landmarks(box: jax.Array) -> jax.Array:
        return jclnf.fit(face.model, crop.image, box, params).landmarks

    shape = jax.eval_shape(jax.vmap(jax.jacfwd(landmarks)), jnp.asarray(crop.box)[None]).shape
    assert shape == (1, *plain.landmarks.shape, 4)
