"""The detector that comes with jclnf, and what it is learned from."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from support.astronaut import ASTRONAUT, holds

from experiments.detector.examples import Examples, Source
from experiments.detector.loss import DOUBTFUL, FACE, FIELDS, assigned, detection_loss, overlaps
from experiments.detector.pictures import Picture, correction
from jclnf.annotations import read_annotations
from jclnf.detect import Detector, FaceDetector, default_name, find_faces
from jclnf.detect import _face_detector as module
from jclnf.detect._network import OUTPUTS, boxes_of, cells
from jclnf.errors import DetectorError, ImageError, ModelFileError
from jclnf.geometry import tight_box
from jclnf.images import read_image
from jclnf.runtime import programs_compiled
from jclnf.tracking import overlap


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


@pytest.fixture(scope="module")
def colour():
    return cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR)


@pytest.fixture(scope="module")
def astronaut(colour):
    return cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)


def moved(box, factor, x=0.0, y=0.0):
    """A box in an enlarged image, whose pixel centres are at integers, then shifted."""
    return np.array([*(factor * (box[:2] + 0.5) - 0.5 + (x, y)), *(factor * box[2:])])


def test_finds_one_face(detector: Detector, astronaut, colour):
    boxes, scores = detector.detect(astronaut)
    assert boxes.shape == (1, 4)
    assert boxes.dtype == np.float64
    assert scores.shape == (1,)
    assert detector.min_score <= scores[0] < 1
    assert holds(boxes[0], ASTRONAUT)
    # Tight: eyebrows to chin and jaw to jaw of this face are about 85 pixels each.
    assert np.all((boxes[0, 2:] > 70) & (boxes[0, 2:] < 105))
    np.testing.assert_array_equal(find_faces(detector, astronaut), boxes)
    np.testing.assert_array_equal(find_faces(detector, colour), boxes)


def test_large_images_are_reduced_and_boxes_brought_back(detector, astronaut):
    large = cv2.resize(astronaut, None, fx=6, fy=6, interpolation=cv2.INTER_LINEAR)
    (found,), box = detector(large), detector(astronaut)[0]
    assert overlap(found, moved(box, 6)) > 0.9


def test_a_face_as_large_as_the_image(detector, astronaut):
    face = astronaut[50:180, 160:290]
    large = cv2.resize(face, (640, 640), interpolation=cv2.INTER_CUBIC)
    (found,) = detector(large)
    expected = moved(detector(astronaut)[0] - (160, 50, 0, 0), 640 / 130)
    assert overlap(found, expected) > 0.8


@pytest.mark.parametrize("degrees", [-40, 40])
def test_a_turned_face(detector, astronaut, degrees):
    matrix = cv2.getRotationMatrix2D((220.0, 130.0), degrees, 1.0)
    turned = cv2.warpAffine(astronaut, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    box = detector(turned)[0]
    assert holds(box, ASTRONAUT @ matrix[:, :2].T + matrix[:, 2])
    assert box[2] < 120


def test_several_faces_largest_first_and_those_that_are_asked_for(detector, astronaut):
    face = astronaut[30:210, 130:310]
    image = np.full((480, 640), 128, np.uint8)
    places = [(1.6, 20, 30), (0.7, 350, 40), (0.3, 450, 300)]
    for zoom, x, y in places:
        part = cv2.resize(face, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        image[y : y + len(part), x : x + len(part)] = part
    box = detector(astronaut)[0] - (130, 30, 0, 0)
    boxes, scores = detector.detect(image)
    assert len(boxes) == len(scores) == 3
    for found, (zoom, x, y) in zip(boxes, places, strict=True):
        assert overlap(found, moved(box, zoom, x, y)) > 0.7
    assert len(detector(image, min_face=50.0)) == 2
    assert len(FaceDetector(min_face=100.0)(image)) == 1


def test_tiles_of_a_large_image(detector, astronaut):
    """A small face is found wherever tiles meet, and a large one that no tile shows whole."""
    image = np.full((1500, 2700), 90, np.uint8)
    face = cv2.resize(astronaut[30:210, 130:310], (72, 72), interpolation=cv2.INTER_AREA)
    box = moved(detector(astronaut)[0] - (130, 30, 0, 0), 72 / 180)
    (top, tile), *_ = module._tiles(image[None])[1:2]
    places = [(top[1] - 30, 200), (top[1] + tile.shape[2] - 50, 1400), (2600, 1280)]
    for x, y in places:
        image[y : y + 72, x : x + 72] = face
    large = cv2.resize(astronaut[30:210, 130:310], (1080, 1080), interpolation=cv2.INTER_CUBIC)
    image[150:1230, 1250:2330] = large
    found = detector(image, min_face=16.0)
    assert len(module._tiles(image[None])) > 2
    expected = [box + (x, y, 0, 0) for x, y in places]
    expected.append(moved(detector(astronaut)[0] - (130, 30, 0, 0), 6, 1250, 150))
    for own in expected:
        assert max(overlap(own, one) for one in found) > 0.6
    assert len(found) == len(expected)


@pytest.mark.parametrize("side", [9, 24, 70, 1500])
@pytest.mark.parametrize("x", [-0.2, 0.5, 0.9])
def test_what_is_doubtful_is_looked_at_in_the_middle_of_a_small_image(side, x):
    grey = np.zeros((2000, 2400), np.uint8)
    left, top = round(x * 2400 - side / 2 * (x > 0)), 200
    grey[top : top + side, max(left, 0) : max(left + side, 0)] = 255
    view = module._view(grey, np.array([left, top, side, side], np.float64))
    assert view.shape == (96, 96)
    rows, columns = np.nonzero(view > 127)
    if left + side <= 0:
        assert len(rows) == 0
        return
    near = 1 + max(1.0, 24 / side)  # a pixel of the image and one of the view
    assert abs(rows.min() - 36) <= near
    assert abs(rows.max() - 59) <= near
    if left >= 0:
        assert abs(columns.min() - 36) <= near
    if left + side <= 2400:
        assert abs(columns.max() - 59) <= near


def test_what_is_doubtful_is_looked_at_once_more_as_it_is_and_mirrored(monkeypatch, rng):
    images = rng.integers(0, 256, (2, 300, 300), np.uint8)
    rows = [[20.0, 30, 40, 40, 0.6], [100, 100, 50, 50, 0.9], [9, 99, 20, 30, 0.7]]
    found = [np.array(rows), np.array([[50.0, 60, 20, 20, 0.5], [0, 0, 30, 30, 0.75]])]

    def seen(_, views):
        assert views.shape == (8, 96, 96)
        assert views.any(axis=(1, 2)).all()
        np.testing.assert_array_equal(views[4:], views[:4, :, ::-1])
        answers = np.zeros((8, 2, 5))
        middle = [47.5 - 12, 47.5 - 12, 24, 24]
        answers[:, 0] = [*middle, 0.4]
        answers[4:, 0, 4] = 0.6
        answers[:, 1] = [5, 5, 24, 24, 0.95]  # of something else
        answers[3, 0, 2:4] = 90  # as the first one of the next image is, which has no face
        return answers

    monkeypatch.setattr(module, "_seen", seen)
    module._reconsider(images, found)
    np.testing.assert_allclose(found[0][:, 4], [0.55, 0.9, 0.6])
    np.testing.assert_allclose(found[1][:, 4], [0.5, 0.525])


def test_a_low_least_score_does_not_make_every_cell_a_face(astronaut):
    image = np.ascontiguousarray(astronaut[:256, 100:356])
    boxes, scores = FaceDetector(min_score=0.1).detect(image)
    assert len(boxes) < len(cells(256, 256)[0]) / 20
    assert scores.min() >= 0.1
    assert holds(boxes[np.argmax(scores)] + (100, 0, 0, 0), ASTRONAUT)


@pytest.mark.parametrize("longer", [1281, 1300, 2500, 9000])
def test_tiles_cover_a_side_and_overlap(longer):
    starts = module._starts(longer, 1280)
    assert starts[0] == 0
    assert starts[-1] + 1280 == longer
    assert max(np.diff(starts)) <= 1280 - module._OVERLAP


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (19, 19), (480, 640), (1, 10_000)])
def test_no_face(detector, shape):
    for level in (0, 255):
        boxes, scores = detector.detect(np.full(shape, level, np.uint8))
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)


@pytest.mark.parametrize(
    "image",
    [np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.float32), np.zeros((0, 20), np.uint8)],
)
def test_other_arrays_are_refused(detector, image):
    with pytest.raises(ImageError, match="image: "):
        detector(image)


def test_other_settings_are_refused(detector, astronaut):
    with pytest.raises(DetectorError, match="min_score is 1"):
        FaceDetector(min_score=1.0)
    with pytest.raises(DetectorError, match="min_face is 0"):
        FaceDetector(min_face=0.0)
    with pytest.raises(DetectorError, match="min_face is nan"):
        detector(astronaut, min_face=float("nan"))


def test_several_images_at_once(detector, astronaut):
    images = np.stack([astronaut, astronaut[:, ::-1], np.zeros_like(astronaut)])
    for (boxes, scores), image in zip(detector.detect_batch(images), images, strict=True):
        alone = detector.detect(np.ascontiguousarray(image))
        np.testing.assert_allclose(boxes, alone[0], atol=0.05)
        np.testing.assert_allclose(scores, alone[1], atol=1e-3)


def test_an_image_of_another_size_compiles_nothing(detector, astronaut):
    detector(cv2.resize(astronaut, (640, 480)))
    before = programs_compiled()
    for size in ((800, 600), (1280, 960), (1111, 833)):
        assert len(detector(cv2.resize(astronaut, size))) == 1
    assert programs_compiled() == before


def test_threads_share_it_and_it_is_pickled(detector, astronaut):
    shifts = range(0, 40, 10)
    images = [np.ascontiguousarray(astronaut[20:220, 100 + by : 340 + by]) for by in shifts]
    expected = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        for found, known in zip(threads.map(detector, 3 * images), 3 * expected, strict=True):
            np.testing.assert_array_equal(found, known)
    for other in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        np.testing.assert_array_equal(other(images[0]), expected[0])


@pytest.mark.parametrize("content", [None, b"", b"weights"])
def test_weights_that_are_missing_or_damaged(tmp_path, monkeypatch, content):
    path = tmp_path / "faces.safetensors"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(module, "bundled_file", lambda _: path)
    module._arrays.cache_clear()
    try:
        with pytest.raises(ModelFileError, match=r"faces.safetensors: .*cannot be read"):
            FaceDetector()
    finally:
        module._arrays.cache_clear()


def test_openfaces_detector_where_its_files_are(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(tmp_path / "installed"))
    main = tmp_path / "main_clnf_own.txt"
    main.touch()
    assert default_name() == default_name(str(main)) == "jclnf"
    folder = tmp_path / "mtcnn_detector"
    folder.mkdir()
    (folder / "MTCNN_detector.txt").touch()
    assert default_name(str(main)) == f"mtcnn:{folder}"
    installed = tmp_path / "installed" / "2.2.0" / "originals" / "mtcnn_detector"
    assert default_name(openface=True) == "jclnf"
    installed.mkdir(parents=True)
    (installed / "MTCNN_detector.txt").touch()
    assert default_name(openface=True) == "mtcnn"
    assert default_name() == "jclnf"


def test_boxes_of_annotated_faces(shared, detector):
    folder = shared / "faces"
    if not folder.is_dir():
        pytest.skip("needs the annotated faces")
    faces = read_annotations(folder / "landmarks.csv", split="val")[::25]
    shares = []
    for face in faces:
        found = detector(read_image(face.image))
        shares.append(max((overlap(box, tight_box(face.landmarks)) for box in found), default=0))
    assert np.mean(np.array(shares) > 0.4) > 0.94
    assert np.median(shares) > 0.8


def test_cells_lie_on_the_image_and_zeros_are_squares_there():
    centres, strides = cells(64, 96)
    assert len(centres) == 8 * 12 + 4 * 6 + 2 * 3
    assert centres[0].tolist() == [3.5, 3.5]
    assert centres[8 * 12].tolist() == [7.5, 7.5]
    assert centres[-1].tolist() == [79.5, 47.5]
    _, boxes = boxes_of(jnp.zeros((len(centres), OUTPUTS)), 64, 96)
    np.testing.assert_allclose(boxes[:, :2], centres)
    np.testing.assert_allclose(boxes[:, 2], 3.5 * strides)


def test_overlaps_are_those_of_boxes(rng):
    a, b = rng.uniform(5, 40, (2, 20, 4))
    shared, apart = jax.jit(overlaps)(jnp.asarray(a), jnp.asarray(b))
    for i in range(20):
        as_corner = [np.array([*(box[:2] - box[2:] / 2), *box[2:]]) for box in (a[i], b[i])]
        assert abs(float(shared[i]) - overlap(*as_corner)) < 1e-5
    assert np.all((apart >= 0) & (apart < 1))


def label(x, y, w, h, kind=FACE):
    return [x, y, w, h, kind, 1.0, 0.0, 1.0]


def test_cells_of_a_face_and_the_loss_of_what_is_right():
    labels = np.zeros((1, 3, FIELDS))
    labels[0, 0] = label(40.5, 52.0, 20, 24)
    labels[0, 1] = label(80.0, 80.0, 60, 64)
    labels[0, 2] = label(110.0, 20.0, 16, 16, DOUBTFUL)
    loss = jax.jit(detection_loss, static_argnums=2)
    own, free, which = (np.asarray(a)[0] for a in jax.jit(assigned, static_argnums=1)(labels, 128))
    centres, strides = cells(128, 128)
    assert set(strides[own & (which == 0)]) == {8}
    assert set(strides[own & (which == 1)]) == {16}
    assert np.all(np.abs(centres[own & (which == 0)] - (40.5, 52)) < 8)
    assert not np.any(own & free)
    at_doubt = np.all(np.abs(centres - (110, 20)) < 8, axis=1)
    assert np.all(free[at_doubt])
    right = np.zeros((1, len(centres), OUTPUTS))
    right[..., 0] = -30.0
    truth = labels[0, which][own]
    right[0, own, 0] = 30.0
    right[0, own, 1:3] = (truth[:, :2] - centres[own]) / strides[own, None]
    right[0, own, 3:5] = np.log(truth[:, 2:4] / (3.5 * strides[own, None]))
    right[0, own, 5:] = truth[:, 6:]
    best = float(loss(jnp.asarray(right), jnp.asarray(labels), 128))
    assert best < 1e-3
    for place, by in (((0, own, 0), -40.0), ((0, own, 1), 0.5), ((0, own, 5), 1.0)):
        worse = right.copy()
        worse[place] += by
        assert float(loss(jnp.asarray(worse), jnp.asarray(labels), 128)) > best + 0.05
    false = right.copy()
    elsewhere = np.flatnonzero(~own & ~free)[:5]
    false[0, elsewhere, 0] = 5.0
    assert float(loss(jnp.asarray(false), jnp.asarray(labels), 128)) > best + 0.2
    doubt = right.copy()
    doubt[0, at_doubt, 0] = 5.0
    assert float(loss(jnp.asarray(doubt), jnp.asarray(labels), 128)) < 1e-3


def test_labels_lie_where_faces_do(monkeypatch):
    """A white ellipse stands for a face: whatever is done, its box is that of the bright pixels."""
    monkeypatch.setattr("experiments.detector.examples.worsened", lambda image, _: image)
    sizes = ((1, 1.0, 60, 100), *[(1, 0.0, 1, 1)] * 3)
    monkeypatch.setattr("experiments.detector.examples.MOSAICS", sizes)
    monkeypatch.setattr(Examples, "_hide", lambda *_: None)
    angle = np.linspace(0, 4 * np.pi, 68, endpoint=False)
    points = np.stack([150 + 40 * np.cos(angle), 140 + 55 * np.sin(angle)], axis=1)
    points[36:48] = [140, 120]
    points[42:48] = [160, 120]
    grey = np.zeros((300, 300), np.uint8)
    cv2.ellipse(grey, (150, 140), (40, 55), 0, 0, 360, 255, -1)
    nothing = np.zeros((0, 4))
    source = Source.of(Picture(grey, points, nothing, nothing))
    flat = Source.of(Picture(np.zeros((50, 50), np.uint8), None, nothing, nothing))
    make = Examples([source], [flat])
    checked = 0
    for number in range(60):
        image, labels = make(0, np.random.default_rng(number))
        (faces,) = np.nonzero(labels[:, 4] == FACE)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        # Whole, and not on a grey border.
        if len(faces) == 0 or border.max() > 0:
            continue
        y, x = np.nonzero(image > image.max() / 2)
        x0, y0, x1, y1 = x.min(), y.min(), x.max(), y.max()
        cx, cy, w, h = labels[faces[0], :4]
        seen = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
        np.testing.assert_allclose([cx, cy, w, h], seen, atol=5)
        assert abs(np.hypot(*labels[faces[0], 6:]) - 1) < 1e-6
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("faces", [True, False])
def test_places_of_mistakes_are_shown_large_and_are_no_faces(monkeypatch, faces):
    """A white square is a mistake: it is seen as large as faces are, and no label lies on it, be
    it in an image with a face or in one without."""
    monkeypatch.setattr("experiments.detector.examples.worsened", lambda image, _: image)
    monkeypatch.setattr("experiments.detector.examples.HARD", 1.0)
    monkeypatch.setattr(Examples, "_hide", lambda *_: None)
    sizes = ((1, 1.0, 60, 100), *[(1, 0.0, 1, 1)] * 3)
    monkeypatch.setattr("experiments.detector.examples.MOSAICS", sizes)
    grey = np.zeros((900, 900), np.uint8)
    grey[600:620, 610:630] = 255
    points = np.full((68, 2), 60.0) + np.arange(68)[:, None] * [0.5, 0.6]
    nothing = np.zeros((0, 4))
    source = Source.of(Picture(grey, points, nothing, nothing))
    flat = Source.of(Picture(np.zeros((50, 50), np.uint8), None, nothing, nothing))
    place = source if faces else Source.of(Picture(grey, None, nothing, nothing))
    make = Examples([source], [flat], [(place, np.array([610.0, 600, 20, 20]))])
    checked = 0
    for number in range(100):
        image, labels = make(0, np.random.default_rng(number))
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        if image.max() == 0 or border.max() > 0:
            continue  # a face, nothing, or not the whole square
        area = np.count_nonzero(image > image.max() / 2)
        assert 55 < np.sqrt(area) < 105
        assert not labels.any()
        checked += 1
    assert checked >= 5


def test_the_correction_of_a_teachers_boxes_is_undone(rng):
    truth = rng.uniform(20, 60, (9, 4))
    found = [box[None] - (2, 5, 0, 0) for box in truth]
    for box in found:
        box[:, 2:] /= 0.9
    a, b, c, d = correction(found, list(truth))
    assert abs(c - 0.9) < 1e-9
    assert abs(d - 0.9) < 1e-9
    assert a > 0
    assert b > 0
