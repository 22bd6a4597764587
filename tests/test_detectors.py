"""How detectors are asked and named, whatever they are; and YuNet's, of which no file is here."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import jclnf
from jclnf.cli._commands import Fit
from jclnf.detect import (
    Detector,
    FaceDetector,
    HaarDetector,
    YuNetDetector,
    default_name,
    find_faces,
    make_detector,
)
from jclnf.errors import DetectorError, ImageError, JclnfError, ModelFileError
from jclnf.images import ImageFile
from jclnf.video import Settings

COLOUR = np.zeros((60, 80, 3), np.uint8)
COLOUR[..., 2] = 200
GREY = cv2.cvtColor(COLOUR, cv2.COLOR_BGR2GRAY)


class Recorder:
    """Returns the boxes it is made with, and keeps the image it is called with."""

    def __init__(self, boxes=((1, 2, 3, 4),), **attributes):
        self.boxes = boxes
        vars(self).update(attributes)

    def __call__(self, image, **options):
        self.image, self.options = image, options
        return self.boxes


@pytest.mark.parametrize("image", [COLOUR, GREY, ImageFile(GREY, COLOUR, Path("photo.png"))])
def test_a_detector_gets_what_it_wants(image):
    wants_grey, wants_colour = Recorder(), Recorder(wants_colour=True)
    find_faces(wants_grey, image)
    np.testing.assert_array_equal(wants_grey.image, GREY)
    find_faces(wants_colour, image)
    expected = np.repeat(GREY[..., None], 3, axis=2) if image is GREY else COLOUR
    np.testing.assert_array_equal(wants_colour.image, expected)
    assert isinstance(wants_grey, Detector)


def test_largest_first_and_none_beside_the_image():
    boxes = [(1, 2, 3, 4), (10, 10, 20, 20), (-50, 0, 40, 70), (80, 5, 90, 9), (70, 50, 40, 40),
             (0, -30, 25, 29.6)]  # fmt: skip
    given = np.array(boxes, np.float32)
    found = find_faces(Recorder(given), GREY)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [boxes[i] for i in (4, 5, 1, 0)])
    np.testing.assert_array_equal(given, np.array(boxes, np.float32))
    for nothing in ([], (), np.zeros((0, 4)), [(90, 90, 5, 5)]):
        assert find_faces(Recorder(nothing), GREY).shape == (0, 4)


def test_the_smallest_face():
    """A detector that can is asked for no smaller ones; of others they are left out."""
    boxes = [(3, 4, 8, 10), (20, 20, 30, 28)]
    knows, knows_not = Recorder(boxes, takes_min_face=True), Recorder(boxes)
    assert len(find_faces(knows, GREY, min_face=20.0)) == 2
    assert knows.options == {"min_face": 20}
    assert find_faces(knows_not, GREY, min_face=20.0).tolist() == [[20, 20, 30, 28]]
    assert len(find_faces(knows_not, GREY, min_face=10.0)) == 2
    assert knows_not.options == {}
    assert len(find_faces(knows, GREY)) == 2
    assert knows.options == {}
    for side in (0.0, -3.0, float("nan"), float("inf")):
        with pytest.raises(DetectorError, match=r"min_face is .*; give a face's side in pixels"):
            find_faces(knows, GREY, min_face=side)


@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        (None, "returned None"),
        ("faces", "returned a str, which is no array"),
        ([(1, 2, 3)], "returned shape"),
        ([(1, 2, 3, 4), (1, 2)], "returned a list, which is no array"),
        ((1, 2, 3, 4), "returned shape"),
        (7, "returned shape"),
        ([(1, 2, np.nan, 4)], "returned .* which is not finite"),
        ([(1, 2, 3, np.inf)], "returned .* which is not finite"),
        ([(50, 40, 30, 0)], "returned the box 50, 40, 30, 0 without a size: .*not the far corner"),
        ([(50, 40, -30, 9)], "returned the box 50, 40, -30, 9 without a size"),
    ],
)
def test_what_is_no_boxes(boxes, problem):
    with pytest.raises(DetectorError, match=f"test_detectors:Recorder: {problem}"):
        find_faces(Recorder(boxes), GREY)


def test_a_detector_that_fails():
    def broken(_):
        raise KeyError("weights")

    def refuses(_):
        raise ImageError("image: too dark")

    match = r"broken: raised KeyError: 'weights'; it is called with a uint8 array of shape \(60, 80"
    with pytest.raises(DetectorError, match=match):
        find_faces(broken, GREY)
    with pytest.raises(ImageError, match="too dark"):
        find_faces(refuses, GREY)


@pytest.mark.parametrize("image", [GREY.astype(float), GREY[0], COLOUR[..., :2]])
def test_what_is_no_image(image):
    with pytest.raises(ImageError, match="image: detection takes a"):
        find_faces(Recorder(), image)


def test_the_default_is_jclnfs_own():
    assert isinstance(jclnf.detect.default(), FaceDetector)
    assert isinstance(make_detector("haar"), HaarDetector)
    for options in (Settings(), Fit(paths=("photo.png",))):
        assert options.detector is None
        assert default_name(options.model) == "jclnf"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's in the current folder."""
    text = (
        "import numpy\n"
        "def find(image):\n    return numpy.array([[1, 2, 3, 4]])\n"
        "class Finder:\n    wants_colour = True\n"
        "    def __call__(self, image):\n        return []\n"
        "class Needy:\n    def __init__(self, path): pass\n    find = staticmethod(find)\n"
        "number = 7\n"
    )
    (tmp_path / "own_faces.py").write_text(text)
    (tmp_path / "broken_faces.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_faces", None)


@pytest.mark.usefixtures("own")
def test_a_users_own():
    assert find_faces(make_detector("own_faces:find"), GREY).tolist() == [[1, 2, 3, 4]]
    assert find_faces(make_detector("own_faces:Needy.find"), GREY).tolist() == [[1, 2, 3, 4]]
    detector = make_detector("own_faces:Finder")
    assert detector.wants_colour
    assert find_faces(detector, GREY).shape == (0, 4)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("nothing", "'nothing' is no detector; there are jclnf .* module:function"),
        ("", "'' is no detector"),
        ("haar:cascade.xml", "is no detector"),
        ("yunet", "is no detector; there are .* yunet:FILE.onnx"),
        ("boxes:faces.csv", "is no detector"),
        (":find", "is no detector"),
        ("own_faces:", "is no detector"),
        ("own_faces:lost", "own_faces has no lost; name a function"),
        ("own_faces:number", "of type int, which cannot be called"),
        ("own_faces:Needy", "cannot be made without arguments .*path"),
        ("lost_faces:find", "lost_faces cannot be imported .ModuleNotFoundError"),
        ("broken_faces:find", "broken_faces cannot be imported .ZeroDivisionError"),
    ],
)
def test_what_names_no_detector(spec, problem):
    with pytest.raises(DetectorError, match=problem):
        make_detector(spec)


def test_networks_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(tmp_path))
    with pytest.raises(ModelFileError, match="MTCNN is not installed"):
        make_detector("mtcnn")
    with pytest.raises(ModelFileError, match="no such file; give OpenFace's model folder"):
        make_detector(f"mtcnn:{tmp_path}")


class FakeYN:
    """OpenCV's object with two faces in it, in an image of 320 by 240."""

    faces = np.array(
        [[10, 20, 40, 60, *range(10), 0.9], [100, 50, 80, 100, *range(10), 0.95]], np.float32
    )

    def setInputSize(self, size):
        self.size = size

    def detect(self, image):
        assert image.shape == (self.size[1], self.size[0], 3)
        return 1, self.faces


@pytest.fixture
def yunet(tmp_path, monkeypatch):
    """Makes a detector around a `FakeYN`."""
    path = tmp_path / "yunet.onnx"
    path.write_bytes(b"onnx")
    fake = FakeYN()
    monkeypatch.setattr(cv2, "FaceDetectorYN", SimpleNamespace(create=lambda *_, **__: fake))
    return lambda **options: (YuNetDetector(path, **options), fake)


def test_yunet_corrects_and_sorts(yunet):
    detector, fake = yunet(correction=(0.1, 0.2, 0.5, 0.6))
    found = find_faces(detector, np.zeros((240, 320, 3), np.uint8))
    np.testing.assert_allclose(found, [[108, 70, 40, 60], [14, 32, 20, 36]])
    assert fake.size == (320, 240)
    boxes, scores = detector.detect(np.zeros((240, 320, 3), np.uint8))
    np.testing.assert_array_equal(boxes, found)
    np.testing.assert_allclose(scores, [0.95, 0.9])
    # By default down from the forehead to the eyebrows.
    default = yunet()[0](np.zeros((240, 320, 3), np.uint8))
    assert default[0, 1] > 60
    assert default[0, 1] + default[0, 3] == pytest.approx(150, abs=5)


def test_yunet_reduces_large_images(yunet):
    detector, fake = yunet(correction=(0.0, 0.0, 1.0, 1.0))
    image = np.zeros((480, 640, 3), np.uint8)
    detector(image)
    assert fake.size == (640, 480)
    found = detector(image, min_face=100.0)
    assert fake.size == (320, 240)
    np.testing.assert_allclose(found, [[200.5, 100.5, 160, 200], [20.5, 40.5, 80, 120]])


def test_yunet_serves_one_thread_at_a_time(yunet):
    detector, fake = yunet()
    images = [np.zeros((side, 2 * side, 3), np.uint8) for side in (20, 30, 40, 50)]
    find = fake.detect

    def slowly(image):
        time.sleep(0.002)
        return find(image)  # which fails if another one has set another size

    fake.detect = slowly
    with ThreadPoolExecutor(4) as threads:
        assert all(len(boxes) == 2 for boxes in threads.map(detector, 5 * images))


def test_yunet_finds_nothing_or_fails(yunet):
    detector, fake = yunet()
    fake.faces = None
    assert detector(COLOUR).shape == (0, 4)

    def fails(_):
        raise cv2.error("a layer of another shape")

    fake.detect = fails
    with pytest.raises(DetectorError, match=r"yunet\.onnx: .*80 x 60 .*another shape.*2023mar"):
        detector(COLOUR)
    with pytest.raises(ImageError, match=r"colour uint8 array \(h, w, 3\)"):
        detector(GREY)


def test_yunet_without_its_file(tmp_path, monkeypatch):
    with pytest.raises(ModelFileError, match=r"lost\.onnx: no such file; give YuNet's network"):
        YuNetDetector(tmp_path / "lost.onnx")
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(ModelFileError, match=r"bad\.onnx: OpenCV cannot load it as YuNet's"):
        make_detector(f"yunet:{path}")
    monkeypatch.delattr(cv2, "FaceDetectorYN")
    with pytest.raises(JclnfError, match="has no FaceDetectorYN; install"):
        YuNetDetector(path)
