"""Entry points agree on where fits start, and compile no more than they have to."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.openface_files import random_model, write_model
from support.synthetic import default_params, planted

import jclnf
from jclnf.fitting import FitResult, map_faces
from jclnf.fitting._batch import _joined, batch_sizes, dealt
from jclnf.images import BUCKETS, crop
from jclnf.params import to_device


@pytest.fixture(scope="module")
def face():
    return planted()


@pytest.fixture
def compilations() -> Iterator[Callable[[], int]]:
    """Programs that were compiled since the last call."""
    events = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    def count() -> int:
        found = len(events)
        events.clear()
        return found

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


def images_of_many_sizes(count: int) -> Iterator[tuple[np.ndarray, tuple[float, ...]]]:
    """Images of different sizes and types, with boxes of 40 to 1,000 px anywhere in them."""
    rng = np.random.default_rng(3)
    for i, side in enumerate(np.geomspace(40, 1000, count)):
        height, width = (int(side * rng.uniform(1.3, 4)) + i for _ in range(2))
        dtype = (np.uint8, np.float32, np.uint16)[i % 3]
        image = np.full((height, width), 100, dtype)
        image[::7] = 150
        at = [rng.uniform(0, extent - side) for extent in (width, height)]
        yield image, (*at, side, side)


def test_images_of_a_hundred_sizes_compile_once_for_each_size_of_crop(face, compilations):
    params = default_params(iterations=1, windows=(0, 3))
    sizes = set()
    for image, box in images_of_many_sizes(100):
        size = len(crop(image, box).image)
        compilations()
        jclnf.fit(face.model, image, box, params)
        if size in sizes:
            assert compilations() == 0, (image.shape, box)
        sizes.add(size)
    assert len(sizes) >= 5
    assert sizes <= set(BUCKETS)


def test_a_last_batch_of_any_size_compiles_nothing(face, compilations):
    params = default_params(iterations=1, windows=(0, 3))
    boxes = np.repeat(face.box[None], 64, axis=0)
    jclnf.fit_images(face.model, [face.image] * 64, boxes, params)
    compilations()
    found = jclnf.fit_images(face.model, [face.image] * 39, boxes[:39], params)
    assert compilations() == 0
    assert found.landmarks.shape == (39, 20, 2)


def test_fits_of_images_are_single_fits_in_the_order_given(face):
    """Crops of different sizes, and a start of its own for each face."""
    pads = [((0, 0), (0, 0)), ((400, 300), (600, 200)), ((7, 0), (0, 3)), ((500, 0), (500, 3))]
    images = [np.pad(face.image, pad) for pad in pads]
    boxes = np.array([face.box + [pad[1][0], pad[0][0], 2 + i, 0] for i, pad in enumerate(pads)])
    sizes = [len(crop(*one).image) for one in zip(images, boxes, strict=True)]
    assert sizes[0] == sizes[2] != sizes[1] == sizes[3]
    params = default_params(windows=(9, 0))
    alike = jclnf.fit_images(face.model, (image for image in images[::2]), boxes[::2], params)
    singles = [jclnf.fit(face.model, images[i], boxes[i], params) for i in (0, 2)]
    check_same(alike, singles, 5e-3)
    assert alike.trace.performed.shape == (2, 0, 2, 0)
    starts = []
    for i, pad in enumerate(pads):
        translation = np.asarray(face.pose.translation) + [pad[1][0] + i, pad[0][0] - i]
        pose = dataclasses.replace(face.pose, translation=to_device(translation, np.float32))
        starts.append((pose, to_device((0.5 + 0.1 * i) * np.asarray(face.shape))))
    init = jax.tree.map(lambda *a: to_device(np.stack(a)), *starts)
    on = jclnf.fit_images(face.model, images, boxes, params, init=init)
    given = zip(images, boxes, starts, strict=True)
    singles = [jclnf.fit(face.model, image, box, params, init=one) for image, box, one in given]
    check_same(on, singles, 5e-3)
    with pytest.raises(jclnf.errors.BoxError, match="4 boxes for 2 images"):
        jclnf.fit_images(face.model, images[:2], boxes)
    with pytest.raises(jclnf.errors.BoxError, match="more images"):
        jclnf.fit_images(face.model, images, boxes[:2])
    with pytest.raises(jclnf.errors.ParamsError, match="poses"):
        jclnf.fit_images(face.model, images[:2], boxes[:2], init=init)


def test_a_few_faces_of_small_crops_join_larger_ones():
    few, large = list(range(3)), list(range(10, 16))
    assert _joined({256: large, 128: few}) == {256: few + large}
    assert _joined({512: large, 128: few}) == {512: few + large}
    many = list(range(100, 120))  # whose pixels would take longer
    assert _joined({256: many, 512: large}) == {256: many, 512: large}
    largest = batch_sizes(256)[-1]
    assert _joined({128: few, 256: [0] * largest}) == {128: few, 256: [0] * largest}


def test_a_fit_of_constants_is_part_of_another_program(face):
    """Nothing that is given to it is traced, but it is called while something is."""
    params = default_params(iterations=1, windows=(0, 3))
    alone = jclnf.fit(face.model, face.image, face.box, params).landmarks
    scaled = jax.jit(lambda s: s * jclnf.fit(face.model, face.image, face.box, params).landmarks)
    np.testing.assert_allclose(scaled(2.0), 2 * np.asarray(alone), rtol=1e-5)


def test_on_a_cpu_a_batch_takes_as_many_fits_as_there_are_faces():
    """Batches are filled up to sizes that are compiled already, but not with work."""
    done: list[float] = []

    def noted(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: done.append(float(x)), x)
        return 2 * x

    run = jax.jit(lambda batch, count: map_faces(noted, batch, count=count))
    found = np.asarray(run(jnp.arange(16.0), jnp.array(5)))
    jax.effects_barrier()
    assert sorted(done) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found[:5], 2 * np.arange(5))


@pytest.mark.parametrize("count", [1, 5, 8, 12])
def test_faces_are_dealt_out_evenly(count, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    places, counts = dealt(count, 12)
    parts = places.reshape(3, 4)
    assert sorted(places) == list(range(12))
    assert counts.sum() == count
    assert np.ptp(counts) <= 1
    wanted = [part[:number] for part, number in zip(parts, counts, strict=True)]
    assert sorted(np.concatenate(wanted)) == list(range(count))


def check_same(batch: FitResult, singles: list[FitResult], tolerance: float) -> None:
    for i, single in enumerate(singles):
        np.testing.assert_allclose(batch.landmarks[i], single.landmarks, atol=tolerance)
        np.testing.assert_array_equal(batch.status[i], single.status)


def test_warming_up_compiles_what_fits_and_trackers_need(face, compilations):
    params = default_params(iterations=1, windows=(9, 0))
    image = np.pad(face.image, 300).astype(np.uint8)
    box = face.box + [300, 300, 0, 0]
    size = float(box[2:].max())
    tracker = jclnf.Tracker(face.model, jclnf.TrackParams(params, params.replace(windows=(0, 7))))
    jclnf.warm_up(face.model, size, params)
    jclnf.warm_up(tracker, size)
    compilations()
    jclnf.fit(face.model, image, box, params)
    tracker.step(image, box)
    tracker.step(image)
    tracker.step(np.zeros_like(image) + 90)
    tracker.step(image)
    assert compilations() == 0


def test_all_entry_points_start_an_openface_model_alike(tmp_path, rng, monkeypatch):
    """From the eleven rotations; its presets from the frontal one, as OpenFace's program does."""
    model = jclnf.load_openface(write_model(tmp_path, random_model()))
    np.testing.assert_allclose(model.defaults.rotations, jclnf.openface.ROTATIONS)
    for preset in (jclnf.FitParams.openface, jclnf.FitParams.openface_wild):
        np.testing.assert_array_equal(preset(model).rotations, [jclnf.openface.FRONTAL])
    small = model.defaults.replace(iterations=1, windows=(3, *(0,) * (len(model.scalings) - 1)))
    model = dataclasses.replace(model, defaults=small)
    image = rng.integers(0, 255, (160, 160)).astype(np.uint8)
    box = np.array([40.0, 40, 70, 70])
    eleven = jclnf.fit(model, image, box, init=jclnf.openface.ROTATIONS)
    frontal = jclnf.fit(model, image, box, init=jclnf.openface.FRONTAL)
    assert np.abs(eleven.landmarks - frontal.landmarks).max() > 0.1
    (tracked,) = jclnf.Tracker(model, single=True).step(image, box)
    _, frames = jclnf.track(model, image[None], box)
    ways = {
        "fit": jclnf.fit(model, image, box).landmarks,
        "under jit": jax.jit(lambda b: jclnf.fit(model, image, b).landmarks)(box),
        "fit_images": jclnf.fit_images(model, [image], [box]).landmarks[0],
        "CLNF": jclnf.CLNF(model).fit(image, box)[0],
        "Tracker": tracked.result.landmarks,
        "track": frames.landmarks[0],
        "command line": fitted_on_the_command_line(model, image, box, tmp_path, monkeypatch),
        "video --independent": independent(model, image, box),
    }
    for name, landmarks in ways.items():
        np.testing.assert_allclose(landmarks, eleven.landmarks, atol=1e-2, err_msg=name)


def fitted_on_the_command_line(model, image, box, folder, monkeypatch) -> np.ndarray:
    import csv

    import cv2

    from jclnf.cli import main

    cv2.imwrite(str(folder / "face.png"), image)
    monkeypatch.setattr(jclnf, "load_model", lambda *_, **__: model)
    at = [str(number) for number in box]
    out = ["--out", str(folder / "out"), "--no-overlay", "--quiet"]
    main(["fit", str(folder / "face.png"), "--model", "any", "--box", *at, *out])
    with open(folder / "out" / "landmarks.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    n = model.pdm.n_landmarks
    return np.array([[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(n)])


def independent(model, image, box) -> np.ndarray:
    from jclnf.video._fitters import IndependentFitter
    from jclnf.video._source import Frame

    frames = [Frame(1, 0.0, np.repeat(image[..., None], 3, axis=2))]
    follower = IndependentFitter(model, model.defaults, lambda _: np.array([box]), None)
    ((_, (found,)),) = follower.fit_frames(frames)
    return found.result.landmarks
