"""MTCNN: its files, its networks beside NumPy, its boxes beside those of OpenFace's C++."""

import csv
import itertools
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.mtcnn_files import SHAPES, network_file, random_layers, run_in_numpy, write_networks
from support.openface_files import little_memory
from test_openface_hostile import mutate

from jclnf.detect import MtcnnDetector, find_faces, make_detector
from jclnf.detect import _mtcnn as mtcnn
from jclnf.detect._mtcnn_networks import faces, make_network
from jclnf.errors import DetectorError, ImageError, ModelFileError
from jclnf.openface import INPUT_SIDES, read_mtcnn
from jclnf.openface._mtcnn import read_network
from jclnf.video import open_source


@pytest.fixture(scope="module")
def networks():
    rng = np.random.default_rng(3)
    return {name: random_layers(shapes, rng) for name, shapes in SHAPES.items()}


@pytest.fixture(scope="module")
def listed(networks, tmp_path_factory) -> Path:
    return write_networks(tmp_path_factory.mktemp("model") / "mtcnn_detector", networks)


@pytest.fixture(scope="module")
def openface_detector(shared):
    if not (shared / "openface/model/mtcnn_detector").is_dir():
        pytest.skip("needs OpenFace's MTCNN")
    return MtcnnDetector(shared / "openface" / "model")


def answers_in_numpy(layers, image):
    out = run_in_numpy(layers, image)
    probability = 1 / (1 + np.exp(out[..., 0] - out[..., 1]))
    return np.concatenate([probability[..., None], out[..., 2:6]], axis=-1)


@pytest.mark.parametrize("name", ["RNet", "ONet"])
def test_networks_of_boxes(networks, listed, rng, name):
    side = INPUT_SIDES[name]
    batch = rng.uniform(0, 255, (3, side, side, 3)).astype(np.float32)
    network = make_network(read_network(listed.parent / f"{name}.dat", name))
    found = faces(network, jnp.asarray(batch), jnp.array([side, side]))
    expected = [answers_in_numpy(networks[name], image) for image in batch]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (12, 13), (13, 12), (15, 24), (16, 23), (19, 17)])
def test_padding_of_the_image_changes_nothing(networks, listed, rng, size):
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    network = make_network(read_network(listed.parent / "PNet.dat", "PNet"))
    found = mtcnn._over_image(network, image)
    expected = answers_in_numpy(networks["PNet"], image)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_images_of_any_size_share_few_programs(listed, monkeypatch):
    shapes = set()

    def noting(network, images, size):
        assert np.all(np.asarray(size) <= images.shape[1:3])
        shapes.add((id(network), images.shape))
        positions = () if images.shape[1] in (24, 48) else (images.shape[1] // 2,) * 2
        return np.zeros((len(images), *positions, 5))

    monkeypatch.setattr(mtcnn, "faces", noting)
    detector = MtcnnDetector(listed)
    for height, width in np.random.default_rng(0).integers(60, 1200, (60, 2)):
        detector.detect(np.zeros((height, width, 3), np.uint8))
    assert 3 <= len(shapes) <= 5
    detector.detect(np.zeros((100, 5000, 3), np.uint8))
    assert max(shape[1] for _, shape in shapes) <= 1024


def test_named_detector(listed):
    detector = make_detector(f"mtcnn:{listed.parent}")
    assert detector.wants_colour
    assert isinstance(make_detector(f"mtcnn:{listed}"), MtcnnDetector)


def test_the_smallest_face(listed, monkeypatch):
    """OpenFace's 60 pixels, a 36th of large images, or as told: the first copy has it at 12."""
    sides = []

    def noting(_, image):
        sides.append(image.shape[1])
        return np.zeros((0, 0, 5))

    monkeypatch.setattr(mtcnn, "_over_image", noting)

    def largest(width: int, **options: float) -> int:
        sides.clear()
        MtcnnDetector(listed)(np.zeros((150, width, 3), np.uint8), **options)
        return max(sides)

    assert largest(1000) == 1000 * 12 / 60
    assert largest(3600) == 3600 * 12 / 100
    assert largest(1000, min_face=30.0) == 1000 * 12 / 30
    assert largest(1000, min_face=5.0) == 1000


def test_threads_share_a_detector(listed, rng):
    images = [rng.integers(0, 255, (90, 120, 3)).astype(np.uint8) for _ in range(4)]
    detector = MtcnnDetector(listed)
    expected = [detector.detect(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        for found, known in zip(threads.map(detector.detect, images), expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, found, known)


def test_suppression():
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 10.4], [5, 0, 10, 10], [2, 2, 4, 4], [50, 0, 9, 9]]
    )
    scores = np.array([0.7, 0.9, 0.8, 0.95, 0.6])
    # The second covers the first; the third and it have 50 of 150 in common; the fourth is small.
    assert mtcnn.suppress(boxes, scores, 0.5).tolist() == [3, 1, 2, 4]
    assert mtcnn.suppress(boxes, scores, 0.3).tolist() == [3, 1, 4]
    assert mtcnn.suppress(boxes, scores, 0.5, of_smaller=True).tolist() == [3, 2, 4]
    # As much as the limit is not too much.
    assert mtcnn.suppress(boxes[[1, 2]], scores[[1, 2]], 50 / 150).tolist() == [0, 1]
    assert mtcnn.suppress(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


def test_squares_are_cut_with_zeros_outside(rng):
    image = rng.uniform(1, 255, (30, 40, 3)).astype(np.float32)
    padded = np.pad(image, ((50, 50), (50, 50), (0, 0)))
    for x, y, size in ((3, 4, 12), (-9, -7, 20), (30, 20, 23), (-5, 2, 60)):
        whole = padded[y + 49 : y + 50 + size, x + 49 : x + 50 + size]
        expected = cv2.resize(whole, (24, 24), interpolation=cv2.INTER_LINEAR)
        found = mtcnn._cut(image, np.array([x, y, size, size], float), 24)
        np.testing.assert_array_equal(found, expected)


def golden(shared, name):
    with open(shared / "openface" / "golden_csv" / name, newline="") as f:
        return list(csv.DictReader(f))


def check_golden(detector, image, row):
    boxes, scores = detector.detect(image)
    expected = [float(row[key]) for key in "xywh"]
    # Five decimals of float32 pixels in a thousand, where the recording has three.
    np.testing.assert_allclose(boxes[0], expected, atol=2e-3)
    assert scores[0] == pytest.approx(float(row["confidence"]), abs=2e-5)
    return boxes


def test_boxes_are_openfaces(shared, openface_detector):
    rows = golden(shared, "mtcnn_boxes.csv")
    assert len(rows) == 10
    for row in rows:
        folder = "samples" if row["image"].startswith("sample") else "images"
        image = cv2.imread(str(shared / "openface" / folder / row["image"]))
        check_golden(openface_detector, image, row)


@pytest.mark.parametrize("video", ["default.wmv", "changeLighting.wmv"])
def test_boxes_in_videos_are_openfaces(shared, openface_detector, video):
    rows = {int(row["frame"]): row for row in golden(shared, "start_boxes.csv")
            if row["video"] == video}  # fmt: skip
    frames = open_source(shared / "openface" / "samples" / video).frames()
    for frame in itertools.islice(frames, 3):
        check_golden(openface_detector, frame.image, rows[frame.number])


def test_reduced_and_grey_images(shared, openface_detector):
    image = cv2.imread(str(shared / "openface" / "samples" / "sample1.jpg"))
    (box,) = openface_detector(image)
    side = min(box[2:])
    reduced = MtcnnDetector(shared / "openface" / "model", max_side=400)(image)
    np.testing.assert_allclose(reduced, [box], atol=0.1 * side)
    np.testing.assert_allclose(find_faces(openface_detector, image), [box])
    grey = find_faces(openface_detector, cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    np.testing.assert_allclose(grey, [box], atol=0.1 * side)


def test_images_without_faces(listed):
    detector = MtcnnDetector(listed)
    for shape in ((1, 1, 3), (59, 400, 3), (11, 11, 3)):
        boxes, scores = detector.detect(np.zeros(shape, np.uint8))
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)
    for image in (np.zeros((70, 70), np.uint8), np.zeros((70, 70, 3), np.float32)):
        with pytest.raises(ImageError, match=r"colour uint8 array \(h, w, 3\)"):
            detector(image)
    for options in ({"min_face": 0.0}, {"min_face": float("nan")}, {"max_side": 0}):
        with pytest.raises(DetectorError, match=r"; give .* in pixels"):
            MtcnnDetector(listed, **options)


def test_any_network_gives_boxes_or_none(listed, rng):
    """Networks that find faces everywhere and move boxes far."""
    image = rng.integers(0, 255, (90, 130, 3)).astype(np.uint8)
    boxes, scores = MtcnnDetector(listed, min_face=40.0).detect(image)
    assert len(boxes) == len(scores)
    assert np.all(scores >= 0.7)


def test_where_the_files_are_found(networks, listed, tmp_path, monkeypatch):
    expected = read_mtcnn(listed)
    for path in (listed.parent, listed.parent.parent):
        for ours, theirs in zip(read_mtcnn(path), expected, strict=True):
            assert [layer.kind for layer in ours] == [layer.kind for layer in theirs]
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(tmp_path))
    with pytest.raises(ModelFileError, match=r"MTCNN is not installed.*jclnf models"):
        read_mtcnn()
    write_networks(tmp_path / "2.2.0" / "originals" / "mtcnn_detector", networks)
    assert len(read_mtcnn().onet) == len(SHAPES["ONet"])
    with pytest.raises(ModelFileError, match="no such file; give OpenFace's model folder"):
        read_mtcnn(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PNet PNet.dat\nRNet RNet.dat\n", "names no ONet"),
        ("PNet PNet.dat\nPNet RNet.dat\n", "line 2: a second PNet"),
        ("LandmarkDetector a.txt\n", "unknown keyword"),
        ("PNet PNet.dat\nRNet RNet.dat\nONet other.dat\n", "other.dat: no such file; .*line 3"),
        ("PNet PNet.dat\nRNet PNet.dat\nONet ONet.dat\n", "RNet puts out"),
        ("PNet ONet.dat\nRNet RNet.dat\nONet ONet.dat\n", "layer 1 takes|puts out"),
    ],
)
def test_bad_lists(networks, tmp_path, text, message):
    path = write_networks(tmp_path, networks)
    path.write_text(text)
    with pytest.raises(ModelFileError, match=message):
        read_mtcnn(path)


def read(folder, data, name="RNet"):
    path = folder / f"{name}.dat"
    path.write_bytes(bytes(data))
    return read_network(path, name)


def test_files_cut_off_anywhere(networks, tmp_path):
    data = bytes(network_file(networks["RNet"]).data)
    assert len(read(tmp_path, data)) == len(SHAPES["RNet"])
    for size in (*range(1, 100), *range(100, len(data), 37), len(data) - 1):
        with pytest.raises(ModelFileError, match=r"RNet\.dat, byte \d+: .*truncated"):
            read(tmp_path, data[:size])
    with pytest.raises(ModelFileError, match=f"byte {len(data)}: 1 bytes follow"):
        read(tmp_path, data + b"\0")


def test_absurd_counts(networks, tmp_path):
    file = network_file(networks["RNet"])
    names = {name for name, _ in file.fields} - {"bias", "kernel", "full bias", "full weights"}
    for name in names - {"slopes"}:
        for offset in {file.offsets(name)[0], file.offsets(name)[-1]}:
            true = struct.unpack_from("<i", file.data, offset)[0]
            for value in {-(2**31), 0, 2**31 - 1} - {true}:
                data = bytearray(file.data)
                struct.pack_into("<i", data, offset, value)
                with little_memory(), pytest.raises(ModelFileError, match=r"RNet\.dat, byte"):
                    read(tmp_path, data)


@pytest.mark.parametrize("name", ["bias", "kernel", "full bias", "full weights", "slopes"])
def test_numbers_that_are_not_finite(networks, tmp_path, name):
    file = network_file(networks["RNet"])
    for value in (np.nan, np.inf):
        data = bytearray(file.data)
        struct.pack_into("<f", data, file.offsets(name)[-1], value)
        with pytest.raises(ModelFileError, match="not a finite"):
            read(tmp_path, data)


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("PNet", [("conv", 12, 3, 6)], "does not move over an image by two pixels"),
        ("PNet", [("pool", 2, 2, 2, 2), ("full", 3 * 6 * 6, 6)], "takes 108 numbers"),
        ("RNet", [("conv", 3, 4, 6)], "layer 0 takes 4 maps"),
        ("RNet", [("full", 24 * 24 * 3, 6), ("conv", 3, 6, 6)], "layer 1 takes 6 maps"),
        ("RNet", [("full", 24 * 24 * 3, 6), ("pool", 2, 2, 2, 2)], "layer 1 pools"),
        ("RNet", [("prelu", 4)], "layer 0 has 4 slopes"),
        ("RNet", [("full", 24 * 24 * 3, 5)], "puts out"),
        ("RNet", [("conv", 13, 3, 3), ("conv", 13, 3, 3)], "layer 1 puts out"),
    ],
)
def test_layers_that_do_not_go_together(tmp_path, rng, name, layers, message):
    with pytest.raises(ModelFileError, match=rf"{name}\.dat.*{message}"):
        read(tmp_path, network_file(random_layers(layers, rng)).data, name)


def test_random_damage(networks, tmp_path):
    damage = random.Random(7)
    data = bytes(network_file(networks["RNet"]).data)
    loaded = 0
    for _ in range(300):
        try:
            layers = read(tmp_path, mutate(damage, data))
        except ModelFileError:
            continue
        loaded += 1
        arrays = [a for layer in layers for a in layer.fields.values() if isinstance(a, np.ndarray)]
        assert all(np.isfinite(array).all() for array in arrays)
    # Most damage to weights goes unnoticed, most of the rest does not.
    assert 30 < loaded < 250
