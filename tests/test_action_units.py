"""Action units against plain loops, and against recordings of OpenFace where they are."""

import hashlib
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from support.action_unit_files import write_predictors

from jclnf import action_units
from jclnf.action_units import People, Person, finish, load_action_units
from jclnf.action_units._align import face_mask, mask_points, warp_matrix, warped
from jclnf.action_units._exact import aligned_face as aligned_exactly
from jclnf.action_units._exact import face_mask as mask_exactly
from jclnf.action_units._fhog import DIRECTIONS, fhog
from jclnf.action_units._medians import RunningMedians
from jclnf.action_units._openface import check_frame, geometry
from jclnf.action_units._person import AGAIN, FAILED, FINAL, KEPT
from jclnf.errors import ImageError
from jclnf.geometry import similarity_between, similarity_matrix
from jclnf.video import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_predictors(tmp_path_factory.mktemp("aus") / "AU_predictors")


@pytest.fixture(scope="module")
def dynamic(folder):
    return load_action_units(folder)


@pytest.fixture(scope="module")
def static(folder):
    return load_action_units(folder, static=True)


def smooth_image(rng, side=160):
    noise = rng.uniform(0, 255, (side, side, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def face_points(model, rng, side=160):
    """Landmarks of the mean shape somewhere in the middle of an image, not quite upright."""
    mean = np.asarray(model.pdm.mean)[:, :2]
    turn = similarity_matrix(np.array([0.9, 0.2]))
    return (mean @ turn.T + side / 2 + rng.normal(0, 1, (68, 2))).astype(np.float32)


def test_a_warp_is_opencvs_fixed_point_rule(rng):
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    matrix = np.array([[0.8, -0.3, 12.7], [0.3, 0.8, -9.2]], np.float32)
    m = matrix.astype(np.float64)
    scale = 1 / (m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])
    i = np.array([[m[1, 1], -m[0, 1]], [-m[1, 0], m[0, 0]]]) * scale
    shift = -i[:, 0] * m[0, 2] - i[:, 1] * m[1, 2]

    def at(y, x, c):
        inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
        return int(image[y, x, c]) if inside else 0

    found = warped(image, matrix)
    for v, u in [*rng.integers(0, 112, (400, 2)), (0, 0), (0, 111), (111, 0), (111, 111)]:
        x, y = (
            (int(np.rint((i[k, 1] * v + shift[k]) * 1024)) + 16 + int(np.rint(i[k, 0] * u * 1024)))
            >> 5
            for k in (0, 1)
        )
        a, b, x, y = x & 31, y & 31, x >> 5, y >> 5
        for c in range(3):
            total = (32 - a) * (32 - b) * at(y, x, c) + a * (32 - b) * at(y, x + 1, c)
            total += (32 - a) * b * at(y + 1, x, c) + a * b * at(y + 1, x + 1, c)
            assert found[v, u, c] == (32 * total + 2**14) >> 15


def test_a_warp_reads_from_images_of_any_size(rng):
    """OpenCV's own stops at 32,767 pixels."""
    image = np.zeros((4, 40_000, 3), np.uint8)
    image[:, 39_900:] = rng.integers(0, 256, (4, 100, 3))
    found = warped(image, np.array([[1, 0, -39_900], [0, 1, 0]], np.float32))
    np.testing.assert_array_equal(found[:4, :100], image[:, 39_900:])
    assert not found[4:].any()
    assert not found[:, 100:].any()
    assert not warped(image, np.array([[1, 0, 500], [0, 1, 0]], np.float32)).any()


def test_the_matrix_turns_and_sizes_by_the_rigid_points(dynamic, rng):
    rigid = [*range(1, 5), *range(12, 16), 27, 28, 29, *range(31, 37), 39, 40, 41, 42, 45, 46, 47]
    mean = np.asarray(dynamic.pdm.mean)
    for _ in range(20):
        turn = similarity_matrix(rng.normal(0, 2, 2))
        points = (mean[:, :2] @ turn.T + rng.normal(200, 50, 2)).astype(np.float32)
        points += rng.normal(0, 2, points.shape).astype(np.float32)
        centre = points.mean(0)
        matrix = warp_matrix(mean, points, centre)
        expected = similarity_between(
            points[rigid].astype(np.float64), 0.7 * mean[rigid, :2].astype(np.float64)
        )
        np.testing.assert_allclose(matrix[:, :2], similarity_matrix(expected), atol=1e-5)
        np.testing.assert_allclose(matrix[:, :2] @ centre + matrix[:, 2], (56, 56), atol=1e-3)


@pytest.mark.parametrize("whole", [False, True])
def test_the_mask_is_the_triangles_with_their_borders(rng, whole):
    points = rng.uniform(-20, 130, (68, 2)).astype(np.float32)
    if whole:  # many pixels lie on borders
        points = np.rint(points)
    points[:3] = (10, 10), (20, 10), (10, 20)
    triangles = np.array([(0, 1, 2), *(rng.permutation(68)[:3] for _ in range(5))])
    mask = face_mask(points, triangles)
    y, x = np.mgrid[:112, :112]
    expected = np.zeros((112, 112), bool)
    for a, b, c in points[triangles].astype(np.float64):
        sides = [
            (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        expected |= np.all([s >= 0 for s in sides], 0) | np.all([s <= 0 for s in sides], 0)
    assert mask[15, 10]
    assert mask[15, 15]
    assert not mask[15, 16]
    np.testing.assert_array_equal(mask, expected)
    if not whole:
        exactly = np.asarray(mask_exactly(jnp.asarray(points), triangles))
        assert (exactly != expected).sum() <= 2


def test_brows_and_the_ends_of_the_jaw_are_raised(rng):
    points = rng.uniform(0, 100, (68, 2)).astype(np.float32)
    moved = mask_points(np.eye(2, 3, dtype=np.float32), points)
    raised = np.isin(np.arange(68), [0, *range(16, 27)])
    np.testing.assert_allclose(moved[:, 1] - points[:, 1], np.where(raised, -30, 0), atol=1e-5)
    np.testing.assert_array_equal(moved[:, 0], points[:, 0])


def plain_fhog(image):
    """The definition, pixel by pixel and cell by cell."""
    values = image.astype(int)
    cells = np.zeros((16, 16, 18))
    for y in range(1, 111):
        for x in range(1, 111):
            gx, gy = values[y, x + 1] - values[y, x - 1], values[y + 1, x] - values[y - 1, x]
            length = gx**2 + gy**2
            blue, green, red = length
            if x < 105:
                channel = 2 if red > green else 1
                channel = channel if length[channel] > blue else 0
            else:
                channel = 1 if green > red else 2
                channel = 0 if blue > length[channel] else channel
            best, orientation = 0.0, 0
            for o, (cos, sin) in enumerate(DIRECTIONS):
                dot = np.float32(gx[channel]) * cos + np.float32(gy[channel]) * sin
                if dot > best:
                    best, orientation = dot, o
                elif -dot > best:
                    best, orientation = -dot, o + 9
            vote = np.sqrt(length[channel])
            py, px = (y + 0.5) / 8 - 0.5, (x + 0.5) / 8 - 0.5
            r, c = int(np.floor(py)), int(np.floor(px))
            for dy, wy in ((0, 1 - (py - r)), (1, py - r)):
                for dx, wx in ((0, 1 - (px - c)), (1, px - c)):
                    cells[r + dy + 1, c + dx + 1, orientation] += wy * wx * vote
    cells = cells[1:-1, 1:-1]
    energy = ((cells[..., :9] + cells[..., 9:]) ** 2).sum(-1)
    result = np.zeros((12, 12, 31))
    for r in range(1, 13):
        for c in range(1, 13):
            for k, (y, x) in enumerate(((r, c), (r - 1, c), (r, c - 1), (r - 1, c - 1))):
                limit = 0.2 * np.sqrt(energy[y : y + 2, x : x + 2].sum() + 1e-4)
                signed = np.minimum(cells[r, c], limit) * 0.1 / limit
                unsigned = np.minimum(cells[r, c, :9] + cells[r, c, 9:], limit) * 0.1 / limit
                result[r - 1, c - 1, :18] += signed
                result[r - 1, c - 1, 18:27] += unsigned
                result[r - 1, c - 1, 27 + k] = 2 * 0.2357 * signed.sum()
    return result


def test_fhog_is_its_definition(rng):
    """With few grey levels, so that colours and orientations tie, and a flat part."""
    image = rng.integers(0, 4, (112, 112, 3)).astype(np.float32) * 60
    image[30:60, 30:60] = 7
    found = jax.jit(fhog)
    np.testing.assert_allclose(found(image), plain_fhog(image), atol=3e-7)
    assert not np.asarray(found(np.zeros_like(image))).any()


def test_exact_alignment_differs_by_roundings(static, rng):
    """The first step that differs from OpenFace's; if it rounds as well, next to nothing does."""
    image, points = smooth_image(rng), face_points(static, rng)
    # The translation is what the fit to the points says: here it is that of the middle.
    middle = points.mean(0)
    matrix = warp_matrix(np.asarray(static.pdm.mean), points, middle)
    mask = face_mask(mask_points(matrix, points), static.triangles)
    expected = warped(image, matrix)

    @jax.jit
    def both(image, points, middle, direction):
        def moved(rounded):
            def face(points):
                model = static.pdm, static.triangles
                return aligned_exactly(*model, image, points, middle, rounded=rounded)

            return jax.jvp(face, (points,), (direction,))

        return moved(False), moved(True)

    found = both(image, points, middle, points)
    (exact, slope), (rounded, of_rounded) = jax.tree.map(np.asarray, found)
    np.testing.assert_array_equal(slope, of_rounded)
    assert np.abs(slope).max() > 1
    inside = mask & exact.any(2)
    assert (mask ^ exact.any(2)).sum() <= 3
    differences = np.abs(exact - expected)[inside]
    assert differences.max() < 6
    assert differences.mean() < 0.7
    assert (rounded != expected)[inside].sum() <= 0.001 * 3 * inside.sum()


def test_a_batch_is_each_face_of_it(static, rng):
    """Of three, which no number of devices divides."""
    images = [smooth_image(rng) for _ in range(3)]
    points = [face_points(static, rng) for _ in range(3)]
    found = action_units.describe_batch(static, images, points, rounded=True)
    assert found.shape == (3, 4464 + 204 + 5)
    for one, image, landmarks in zip(found, images, points, strict=True):
        described = action_units.describe_openface(static, image, landmarks)
        assert described.aligned.shape == (112, 112, 3)
        # A byte of the aligned face may be another one; it reaches four cells, and their blocks.
        close = np.isclose(one, described.descriptor, atol=1e-4)
        assert close.mean() > 0.9
    for wrong in (images[:2], [*images[:2], images[0][1:]]):
        with pytest.raises(ImageError, match="3 faces need as many images, of one size"):
            action_units.describe_batch(static, wrong, points)


def test_gradients_are_those_of_differences(static, rng):
    """In double precision; where orientations or colours change within a step there is a jump."""
    image, points = smooth_image(rng).astype(np.float64), face_points(static, rng)
    with jax.enable_x64(True):
        cast = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64) if a.dtype == jnp.float32 else a, static
        )

        def intensity(image, points):
            return action_units.estimate(cast, image, points)[1]

        points = points.astype(np.float64)
        gradients = jax.jit(jax.grad(intensity, (0, 1)))(image, points)
        slopes, batch = [], []
        for which, gradient in enumerate(map(np.asarray, gradients)):
            for index in np.argsort(-np.abs(gradient).reshape(-1))[:20]:
                slopes.append(gradient.reshape(-1)[index])
                step = np.zeros(gradient.size)
                step[index] = 1e-6
                moved = step.reshape(gradient.shape)
                for end in (moved, -moved):
                    batch.append((image + end, points) if which == 0 else (image, points + end))
        images, faces = map(np.stack, zip(*batch, strict=True))
        values = np.asarray(jax.jit(jax.vmap(intensity))(images, faces)).reshape(-1, 2)
    found = (values[:, 0] - values[:, 1]) / 2e-6
    kinks = ~np.isclose(found, slopes, rtol=1e-4, atol=1e-6)
    assert kinks.sum() <= 0.02 * len(kinks) + 1
    assert np.abs(np.asarray(gradients[0])).max() > 0


def test_medians_are_those_of_the_histograms(rng):
    medians = RunningMedians(4, 100, -1.0, 3.0)
    values = rng.normal(1, 2, (41, 4))
    copy = RunningMedians(4, 100, -1.0, 3.0)
    for count, row in enumerate(values, 1):
        medians.add(row)
        bins = np.clip((values[:count] + 1) * 100 / 4, 0, 99).astype(int)
        middle = np.sort(bins, 0)[(count + 1) // 2 - 1]
        np.testing.assert_allclose(medians.medians(), -1 + (middle + 0.5) * 0.04, atol=1e-12)
        if count == 20:
            copy.restore(medians.state())
    for row in values[20:]:
        copy.add(row)
    np.testing.assert_array_equal(copy.medians(), medians.medians())


def descriptors(model, rng, count):
    size = len(model.weights)
    return np.abs(rng.normal(0.1, 0.05, size)) + rng.normal(0, 0.02, (count, size))


def test_a_dynamic_predictor_takes_the_median_of_every_second_frame_away(dynamic, rng):
    frames = descriptors(dynamic, rng, 6)
    person = Person(dynamic)
    assert dynamic.columns == ["AU01_r", "AU12_r", "AU01_c", "AU12_c"]
    assert dynamic.dynamic == (True, False, True, False)
    first = person.step(frames[0])
    # The median of a single frame is the frame itself, where it is not negative.
    positive = np.r_[np.maximum(frames[0][:4464], 0), frames[0][4464:]]
    expected = (frames[0] - positive) @ dynamic.weights + dynamic.biases
    np.testing.assert_allclose(first.shown[0], expected[0], atol=1e-12)
    static_output = frames[0] @ dynamic.weights + dynamic.biases
    np.testing.assert_allclose(first.shown[1], static_output[1], atol=1e-12)
    second = person.step(frames[1])
    expected = (frames[1] - positive) @ dynamic.weights + dynamic.biases
    np.testing.assert_allclose(second.shown[0], expected[0], atol=1e-12)
    third = person.step(frames[2])
    pair = np.sort(frames[[0, 2]], 0)[0]  # the lower of the two
    width = np.r_[np.full(4464, 1.005 / 1000), np.full(len(pair) - 4464, 120 / 10_000)]
    slack = np.abs(dynamic.weights[:, 0]) @ width
    expected = (frames[2] - np.r_[np.maximum(pair[:4464], 0), pair[4464:]]) @ dynamic.weights
    assert abs(third.shown[0] - expected[0] - dynamic.biases[0]) < slack
    lost = person.step(None)
    assert lost.kind == FAILED
    assert not lost.shown.any()


def test_a_person_who_is_not_seen_at_first_has_the_median_of_empty_histograms(dynamic, rng):
    frame = descriptors(dynamic, rng, 1)[0]
    person = Person(dynamic)
    person.step(None)
    empty = np.r_[np.zeros(4464), np.full(len(frame) - 4464, -60 + 120 / 10_000 / 2)]
    found = person.step(frame)  # an even frame: the median stays
    expected = (frame - empty) @ dynamic.weights + dynamic.biases
    np.testing.assert_allclose(found.shown[0], expected[0], atol=1e-9)


def test_a_person_goes_on_from_its_state_to_the_last_bit(dynamic, rng):
    frames = [*descriptors(dynamic, rng, 25)]
    frames[3] = frames[10] = None
    for live in (False, True):
        whole, copy = Person(dynamic, live=live), Person(dynamic, live=live)
        for frame in frames[:13]:
            whole.step(frame)
        copy.restore({key: np.array(array) for key, array in whole.state().items()})
        for frame in frames[13:]:
            one, other = whole.step(frame), copy.step(frame)
            np.testing.assert_array_equal(one.shown, other.shown)
            np.testing.assert_array_equal(one.kept, other.kept)


def test_a_cameras_intensities_are_corrected_by_what_is_rare(static, rng):
    frames = descriptors(static, rng, 40)
    person = Person(static, live=True)
    n = len(static.intensities)
    outputs = (frames @ static.weights + static.biases)[:, :n]
    shown = np.array([person.step(frame).shown[:n] for frame in frames])
    for count in range(1, 41):
        bins = np.clip((outputs[:count] + 3) * 25, 0, 199).astype(int)
        rare = -3 + np.sort(bins, 0)[int(0.10 * count)] * 0.04 if count >= 10 else 0.0
        expected = np.clip(outputs[count - 1] - rare, 0, 5)
        np.testing.assert_allclose(shown[count - 1], expected, atol=1e-9)


def test_what_is_kept_is_judged_again_shifted_limited_and_smoothed(dynamic, rng):
    n, frames = 2, 23
    kept = rng.normal(1, 2, (frames, 4))
    kinds = np.where(np.arange(frames) < 15, AGAIN, FINAL)
    kinds[[4, 5, 16]] = FAILED
    of_median = rng.normal(0, 0.5, 4) * np.array(dynamic.dynamic)
    seen = kinds != FAILED
    outputs = [row - of_median * (kind == AGAIN) for row, kind in zip(kept, kinds, strict=True)]
    intensities = np.zeros((frames, n))
    for j, cutoff in enumerate((0.3, -1)):
        values = sorted(row[j] for row, one in zip(outputs, seen, strict=True) if one)
        offset = values[int(len(values) * cutoff)] if cutoff > 0 else 0
        for i in np.flatnonzero(seen):
            intensities[i, j] = min(max(outputs[i][j] - offset, 0), 5)
    classes = np.array([[(row[j] <= 0) * 1.0 for j in (2, 3)] for row in outputs]) * seen[:, None]
    found = finish(dynamic, kept, kinds, of_median)
    for i in range(frames):
        inner = 0 < i < frames - 1
        average = intensities[i - 1 : i + 2].mean(0) if inner else intensities[i]
        np.testing.assert_allclose(found[i, :n], average, atol=1e-12)
        inner = 2 < i < frames - 3
        majority = classes[i - 3 : i + 4].sum(0) >= 4 if inner else classes[i]
        np.testing.assert_array_equal(found[i, n:], majority)
    for short in (1, 2, 5, 7):
        assert finish(dynamic, kept[:short], kinds[:short], of_median).shape == (short, 4)
    nobody = finish(dynamic, kept, np.zeros(frames, int), of_median)
    assert not nobody.any()


def test_only_the_first_frames_are_judged_again(dynamic, rng):
    person = Person(dynamic)
    person._seen = KEPT - 1
    frames = descriptors(dynamic, rng, 2)
    kinds = [person.step(frame).kind for frame in frames]
    assert kinds == [AGAIN, FINAL]


def face(number, points, success=True):
    return SimpleNamespace(id=number, success=success, result=SimpleNamespace(landmarks=points))


def test_faces_are_persons_of_their_own(dynamic, rng):
    image, points = smooth_image(rng), face_points(dynamic, rng)
    people = People(dynamic)
    one, other = face(0, points), face(3, points + 9)
    found = people.step(image, [one, other])
    assert set(found) == {0, 3}
    alone = Person(dynamic)
    descriptor = action_units.describe_openface(dynamic, image, points).descriptor
    np.testing.assert_array_equal(found[0].shown, alone.step(descriptor).shown)
    copy = People(dynamic)
    copy.restore(people.state())
    for _ in range(2):
        found = people.step(image, [other])
        np.testing.assert_array_equal(found[3].shown, copy.step(image, [other])[3].shown)
    left = people.of_median(0)
    for _ in range(101):
        people.step(None, [])
    assert not people._persons, "persons who have left are forgotten"
    np.testing.assert_array_equal(people.of_median(0), left)
    copy.restore(people.state())
    np.testing.assert_array_equal(copy.of_median(0), left)


def test_a_single_person_is_there_all_the_time(dynamic, rng):
    image, points = smooth_image(rng), face_points(dynamic, rng)
    people, person = People(dynamic, single=True), Person(dynamic)
    descriptor = action_units.describe_openface(dynamic, image, points).descriptor
    for faces, expected in (([], None), ([face(0, points)], descriptor), ([], None)):
        found = people.step(image, faces)
        np.testing.assert_array_equal(found[0].shown, person.step(expected).shown)


def test_images_and_landmarks_that_cannot_be(static, rng):
    image, points = smooth_image(rng), face_points(static, rng)
    for wrong, given, match in (
        (image[..., 0], points, "in colours"),
        (image.astype(np.float32), points, "uint8"),
        (image, points[:-1], "68 landmarks"),
    ):
        with pytest.raises(ImageError, match=match):
            check_frame(wrong, given)
    for points in (np.full((68, 2), 5.0), np.full((68, 2), np.nan)):
        with pytest.raises(ImageError, match="not those of a face"):
            action_units.describe_openface(static, image, points)
        assert People(static).step(image, [face(0, points)])[0].kind == FAILED


# From here on: recordings of OpenFace.


@pytest.fixture(scope="module")
def recorded(shared_units):
    return {static: load_action_units(shared_units, static=static) for static in (False, True)}


@pytest.fixture(scope="session")
def shared_units(shared):
    folder = shared / "openface" / "AU_predictors"
    if not folder.is_dir() or not (shared / "openface" / "au").is_dir():
        pytest.skip(f"needs OpenFace's predictors of action units and recordings, not at {shared}")
    return folder


@pytest.mark.parametrize("name", ["stages_dyn_default", "stages_images"])
def test_stages_are_the_recorded_ones(shared, recorded, name):
    model = recorded[name == "stages_images"]
    stages = np.load(shared / "openface" / "au" / f"{name}.npz")
    mean = np.asarray(model.pdm.mean)
    for i, (points, rigid) in enumerate(
        zip(stages["landmarks"], stages["params_global"], strict=True)
    ):
        landmarks = points.reshape(2, 68).T
        matrix = warp_matrix(mean, landmarks, rigid[4:])
        np.testing.assert_array_equal(matrix, stages["warp"][i])
        mask = face_mask(mask_points(matrix, landmarks), model.triangles)
        np.testing.assert_array_equal(mask, stages["mask"][i] > 0)
        crop, (x, y) = stages[f"crop_{i:03d}"], stages[f"crop_origin_{i:03d}"]
        image = np.zeros((y + len(crop) + 3, x + crop.shape[1] + 3, 3), np.uint8)
        image[y : y + len(crop), x : x + crop.shape[1]] = crop
        described = action_units.describe_openface(model, image, landmarks)
        np.testing.assert_array_equal(described.aligned, stages["aligned_au"][i])
        np.testing.assert_allclose(described.appearance.reshape(-1), stages["hog"][i], atol=1e-6)
        np.testing.assert_allclose(described.geometry[-34:], stages["params_local"][i], atol=3e-4)
        found = geometry(model.pdm, stages["params_local"][i])
        np.testing.assert_allclose(found, stages["geom"][i], atol=1e-12)
        if name == "stages_images":
            shown = model.shown(model.predict(described.descriptor))
            at = [list(stages["reg_final_names"]).index(one) for one in model.intensities]
            np.testing.assert_allclose(shown[: len(at)], stages["reg_final"][i, at], atol=1e-4)
            classes = [list(stages["svm_class_names"]).index(one) for one in model.presences]
            np.testing.assert_array_equal(shown[len(at) :], stages["svm_class"][i, classes])


VIDEOS = ["dyn_default", "dyn_failclip", "dyn_changeLighting", "dyn_short5"]


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_judged_as_recorded(shared, recorded, name):
    model = recorded[False]
    video = np.load(shared / "openface" / "au" / f"video_{name}.npz")
    n = len(model.intensities)

    def in_order(values, names):
        return values[..., [list(video[names]).index(one) for one in _names(model, names)]]

    person = Person(model)
    units = []
    for hog, shape, seen in zip(video["hog"], video["params_local"], video["success"], strict=True):
        both = np.concatenate([hog.astype(np.float64), geometry(model.pdm, shape)])
        units.append(person.step(both if seen else None))
    shown = np.array([unit.shown for unit in units])
    online = in_order(video["reg_online"], "reg_online_names")
    np.testing.assert_allclose(shown[:, :n], online, atol=1e-10)
    online = in_order(video["class_online"], "class_online_names")
    np.testing.assert_array_equal(shown[:, n:], online)
    kept, kinds = np.array([unit.kept for unit in units]), np.array([unit.kind for unit in units])
    final = finish(model, kept, kinds, person.of_median)
    smoothed = in_order(video["post_reg_smoothed"].T, "post_reg_smoothed_names")
    np.testing.assert_allclose(final[:, :n], smoothed, atol=1e-10)
    classes = in_order(video["post_class_smoothed"].T, "post_class_smoothed_names")
    np.testing.assert_array_equal(final[:, n:], classes)


def _names(model, names):
    return model.presences if "class" in names else model.intensities


def test_a_camera_is_corrected_as_recorded(shared, recorded):
    model = recorded[False]
    live = np.load(shared / "openface" / "au" / "harness_A_online.npz")
    video = np.load(shared / "openface" / "au" / "video_dyn_default.npz")
    order = [list(live["reg_online_names"]).index(name) for name in model.intensities]
    person = Person(model, live=True)
    for i, frame in enumerate(live["frame_index0"]):
        descriptor = None
        if live["success"][i]:
            shape = geometry(model.pdm, video["params_local"][frame])
            descriptor = np.concatenate([video["hog"][frame].astype(np.float64), shape])
        shown = person.step(descriptor).shown[: len(order)]
        np.testing.assert_allclose(shown, live["reg_online"][i, order], atol=1e-10)


@pytest.mark.parametrize("clip", ["default.wmv", "changeLighting.wmv"])
def test_clips_are_judged_from_frames_and_landmarks_as_recorded(shared, recorded, clip):
    """And printed with OpenFace's digits, but for ties of their rounding."""
    model, name = recorded[False], clip.removesuffix(".wmv")
    video = np.load(shared / "openface" / "au" / f"video_dyn_{name}.npz")
    person, units = Person(model), []
    frames = open_source(str(shared / "openface" / "samples" / clip)).frames()
    for frame, points, md5 in zip(frames, video["landmarks"], video["frame_md5"], strict=True):
        assert hashlib.md5(frame.image.tobytes()).hexdigest() == md5
        described = action_units.describe_openface(model, frame.image, points.reshape(2, 68).T)
        units.append(person.step(described.descriptor))
    kept, kinds = np.array([unit.kept for unit in units]), np.array([unit.kind for unit in units])
    final = finish(model, kept, kinds, person.of_median)
    n = len(model.intensities)
    order = [list(video["post_reg_smoothed_names"]).index(one) for one in model.intensities]
    expected = video["post_reg_smoothed"][order].T
    print("worst intensity", np.abs(final[:, :n] - expected).max())
    np.testing.assert_allclose(final[:, :n], expected, atol=1e-4)
    table = pandas.read_csv(
        shared / "openface" / "au" / f"FeatureExtraction_dyn_{name}.csv", skipinitialspace=True
    )
    written = table[model.columns].to_numpy()
    np.testing.assert_array_equal(final[:, n:], written[:, n:])
    found = np.array([[float(f"{value:.2f}") for value in row] for row in final[:, :n]])
    other = found != written[:, :n]
    print("digits that differ", other.sum(), "of", other.size)
    assert np.abs(final[:, :n] - written[:, :n])[other].max(initial=0) < 0.005 + 1e-4
    assert other.sum() <= 1e-3 * other.size
