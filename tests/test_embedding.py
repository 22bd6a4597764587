"""jclnf in other people's programs: threads, processes, pickles, and what they hand over."""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from support.synthetic import Planted, planted

import jclnf
from jclnf import CLNF, JclnfError, Tracker, crop, fit, fit_images, track
from jclnf.detect import HaarDetector, find_faces
from jclnf.errors import ImageError, ModelFileError
from jclnf.runtime import enable_compilation_cache


@pytest.fixture(scope="module")
def case() -> Planted:
    return planted()


ASKED = {
    "crop": lambda _, image, box: crop(image, box),
    "fit": fit,
    "fit, a JAX array": lambda model, image, box: fit(model, jnp.asarray(image), box),
    "fit, half precision": lambda m, i, box: fit(m, jnp.asarray(i, jnp.bfloat16), box),
    "fit, derivative": lambda model, image, box: jax.grad(
        lambda box: fit(model, image, box).likelihood
    )(jnp.asarray(box)),
    "fit_images": lambda model, image, box: fit_images(model, [image], [box]),
    "track": lambda model, image, box: track(model, np.stack([image, image]), box),
    "Tracker": lambda model, image, box: Tracker(model).step(image, box),
    "CLNF": lambda model, image, box: CLNF(model).fit(image, box),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_image_of_0_to_1_is_refused_everywhere(case, name):
    with pytest.raises(ImageError, match=r"scaled to 0\.\.1; multiply by 255"):
        ASKED[name](case.model, np.float32(case.image / 255), case.box)


def again(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [again, copy.copy, copy.deepcopy])
def test_a_copy_of_a_tracker_goes_on_as_it_would(case, copied):
    """From where it stands, and apart from it."""
    image = np.rint(case.image).astype(np.uint8)
    frames = [np.roll(image, by, axis=1) for by in (0, 2, 4, 6)]
    tracker = Tracker(case.model, detector=HaarDetector(profiles="never"), give_up_after=7)
    tracker.step(frames[0], case.box)
    other = copied(tracker)
    assert other.give_up_after == 7
    assert other.detector.profiles == "never"
    expected = [tracker.step(frame, []) for frame in frames[1:]]
    for frame, (face,) in zip(frames[1:], expected, strict=True):
        (found,) = other.step(frame, [])
        assert found.id == face.id
        jax.tree.map(np.testing.assert_array_equal, found.result, face.result)


def test_detectors_and_models_are_pickled(case):
    grey = skimage.data.astronaut()[20:220, 100:340, 1]
    detector = HaarDetector(min_face=50.0)
    for other in (again(detector), copy.deepcopy(detector), copy.copy(detector)):
        np.testing.assert_array_equal(find_faces(other, grey), find_faces(detector, grey))
        assert other.min_face == 50
    for model in (case.model, jclnf.load_model()):
        other = again(model)
        assert jax.tree.structure(other) == jax.tree.structure(model)
        jax.tree.map(np.testing.assert_array_equal, other, model)


def test_errors_are_pickled():
    """Pools of processes hang over those that are not."""
    kinds = [
        kind
        for kind in vars(jclnf.errors).values()
        if isinstance(kind, type) and issubclass(kind, JclnfError)
    ]
    errors = [ModelFileError("a.txt", "is cut off", offset=7)]
    errors += [kind("what is wrong") for kind in kinds if kind is not ModelFileError]
    assert len(errors) > 8
    for error in errors:
        other = again(error)
        assert type(other) is type(error)
        assert str(other) == str(error)


FORKED = """
import os, sys, jclnf, numpy as np

def in_a_fork(*calls):
    if os.fork():
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        return
    for call in calls:
        try:
            call()
        except jclnf.JclnfError as error:
            assert 'multiprocessing.get_context("spawn")' in str(error)
            print("refused")
    sys.stdout.flush()
    os._exit(0)

in_a_fork(lambda: print(jclnf.load_model().name))
model = jclnf.load_model()
tracker = jclnf.Tracker(model)
grey = np.zeros((200, 200), np.uint8)
points = np.zeros((68, 2), np.float32), np.ones(68, bool)
in_a_fork(
    jclnf.load_model,
    lambda: jclnf.fit(model, grey, (50, 50, 90, 90)),
    lambda: jclnf.fit_images(model, [grey], [(50, 50, 90, 90)]),
    lambda: jclnf.fit_points(model.pdm, *points),
    lambda: jclnf.track(model, grey[None], (50, 50, 90, 90)),
    lambda: jclnf.Tracker(model),
    lambda: tracker.step(grey, (50, 50, 90, 90)),
)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the system has no fork")
def test_a_fork_says_at_once_what_it_cannot_do():
    """One that starts JAX itself has its own threads; those of before the fork are not in it."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["default", *7 * ["refused"]], done.stderr
    assert done.returncode == 0


CACHED = """
import pathlib, sys, jclnf, jax, jax.numpy as jnp
folder = pathlib.Path(sys.argv[1])

def run():
    jax.clear_caches()
    jclnf.enable_compilation_cache(folder)
    for n in range(3):
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(100 + n)).block_until_ready()
    return {path: path.stat().st_mtime_ns for path in folder.glob("*-cache")}

whole = run()
assert len(whole) > 3
for first in range(4):
    for number, path in enumerate(sorted(whole)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        damaged = b"", data[: len(data) // 2], data, path.read_bytes()
        path.write_bytes(damaged[(first + number) % 4])
    run()
    mended = run()
    assert set(mended) == set(whole), first
    assert run() == mended, first  # nothing was compiled
"""


def test_damaged_files_of_the_compilation_cache_are_replaced(tmp_path):
    # JAX names a program, not its file: whole ones of its name that were read in the same run go,
    # too, and are back after the next run only.
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    command = [sys.executable, "-c", CACHED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_cache_that_is_turned_off_stays_off(tmp_path):
    """By an empty name, as JAX has it: nothing is written, least of all where the program runs."""
    code = (
        "import jax, jclnf, jclnf.runtime._kept as kept\n"
        "assert jclnf.enable_compilation_cache() is None\n"
        "assert kept._folder is None\n"
        "assert jax.config.jax_compilation_cache_dir is None\n"
    )
    given = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=given)
    assert list(tmp_path.iterdir()) == []


def test_other_warnings_are_shown(tmp_path):
    with warnings.catch_warnings():
        shown = []
        warnings.showwarning = lambda message, *_: shown.append(str(message))
        enable_compilation_cache(tmp_path)
        warnings.warn("Error reading something else", stacklevel=1)
    assert shown == ["Error reading something else"]
