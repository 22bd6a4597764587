import cv2
import numpy as np
import pytest

from jclnf.errors import BoxError, ImageError
from jclnf.images import BUCKETS, check_box, crop
from jclnf.images._crop import MAX_BOX_RATIO, MIN_BOX_SIDE


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(1, 256, (300, 400), dtype=np.uint8)


BOXES = {
    "middle": (150.25, 100.5, 90.0, 80.0),
    "top left": (-20.0, -15.5, 60.0, 70.0),
    "bottom right": (350.0, 250.0, 80.0, 60.0),
    "whole": (0.0, 0.0, 400.0, 300.0),
    "larger than the image": (-300.0, -200.0, 1000.0, 700.0),
    "smallest": (30.0, 40.0, 8.0, 8.0),
    "flat": (10.0, 100.0, 380.0, 9.0),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("margin", [0.0, 0.4, 1.0])
def test_crop_samples_what_the_image_samples(image, box, margin):
    c = crop(image, box, margin=margin)
    assert c.image.dtype == np.float32
    assert c.image.shape[0] == c.image.shape[1]
    assert c.image.shape[0] in BUCKETS
    assert np.all(c.offset == np.round(c.offset))
    np.testing.assert_allclose(c.box[:2] + c.offset, box[:2], atol=1e-4)
    np.testing.assert_array_equal(c.box[2:], np.float32(box[2:]))

    # Bilinear, zero outside: the same numbers at the same points of the region.
    x, y, w, h = box
    low = np.maximum((x - margin * w, y - margin * h), -2)
    high = np.minimum((x + w + margin * w, y + h + margin * h), (402, 302))
    points = np.random.default_rng(1).uniform(low, high, (500, 2))
    points = np.round(points * 32) / 32  # the resolution of OpenCV's interpolation

    def sample(pixels, at):
        at = at.astype(np.float32)[None]
        return cv2.remap(
            pixels, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
        )

    np.testing.assert_allclose(
        sample(c.image, points - c.offset), sample(image.astype(np.float32), points), atol=1e-3
    )


def test_crop_is_zero_outside_the_image_and_the_image_inside(image):
    c = crop(image, BOXES["top left"])
    x0, y0 = c.offset.astype(int)
    side = len(c.image)
    rows, columns = np.mgrid[y0 : y0 + side, x0 : x0 + side]
    inside = (rows >= 0) & (columns >= 0) & (rows < 300) & (columns < 400)
    assert np.all(c.image[~inside] == 0)
    np.testing.assert_array_equal(c.image[inside], image[rows[inside], columns[inside]])


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_crop_wastes_no_pixels_outside_a_large_image(image, box):
    c = crop(image, box, sizes=(128, 256, 300, 2000))
    for start, side, extent in zip(c.offset, c.image.shape, (400, 300), strict=True):
        assert start == 0 if extent <= side else 0 <= start <= extent - side


def test_smallest_bucket_that_holds_the_region():
    image = np.zeros((5000, 5000), np.uint8)
    assert len(crop(image, (2000, 2000, 40, 42)).image) == 128
    assert len(crop(image, (2000, 2000, 40, 43)).image) == 256
    assert len(crop(image, (2000, 2000, 90, 20), margin=0.1, sizes=(64, 100, 300)).image) == 300
    # Beyond the largest: its multiples, so that a huge face still works.
    assert len(crop(image, (2000, 2000, 90, 20), sizes=(64, 100)).image) == 300


def test_region_is_cut_at_the_border(image):
    # 3 x 200 would need the 1024 bucket; the image's own 400 does not.
    assert len(crop(image, (100, 50, 200, 200)).image) == 512


def test_crop_takes_any_grey_type(image):
    expected = crop(image, BOXES["middle"]).image
    for dtype in (np.uint16, np.int64, np.float16, np.float64):
        np.testing.assert_array_equal(crop(image.astype(dtype), BOXES["middle"]).image, expected)


def test_crop_refuses_what_is_not_a_grey_image():
    with pytest.raises(ImageError, match="multiply by 255"):
        crop(np.random.default_rng(0).random((50, 50)), (10, 10, 20, 20))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 2, 3), "four numbers"),
        ([[10, 10, 20, 20]], "four numbers"),
        ("face", "four numbers"),
        (None, "four numbers"),
        ({"x": 1}, "four numbers"),
        ((10, 10, np.nan, 20), "not finite"),
        ((np.inf, 10, 20, 20), "not finite"),
        ((10, 10, 0, 20), "positive"),
        ((50, 50, -20, -20), "two corners"),
        ((10, 10, MIN_BOX_SIDE - 0.01, 20), "too small"),
        ((10, 10, 20, MIN_BOX_SIDE - 0.01), "too small"),
        ((500, 10, 40, 40), "outside"),
        ((10, -60, 40, 40), "outside"),
        ((-31, 10, 60, 60), "outside"),
        ((0, 0, 400 * MAX_BOX_RATIO + 1, 300), "400 x 300"),
        ((1e30, 1e30, 1e30, 1e30), "400 x 300"),
    ],
)
def test_bad_boxes(box, message):
    with pytest.raises(BoxError, match=message):
        check_box(box, (300, 400))


def test_good_boxes():
    for box in BOXES.values():
        np.testing.assert_array_equal(check_box(box, (300, 400, 3)), box)
    # Centred on the border, and exactly as large as allowed.
    check_box((-30, 10, 60, 60), (300, 400))
    check_box(np.float32([-600, -450, 1600, 1200]), (300, 400))


@pytest.mark.parametrize("margin", [-0.1, np.nan, np.inf])
def test_bad_margin(image, margin):
    with pytest.raises(ValueError, match="margin"):
        crop(image, BOXES["middle"], margin=margin)


@pytest.mark.parametrize("sizes", [(), (0, 8), (128, 64), (64, 64)])
def test_bad_sizes(image, sizes):
    with pytest.raises(ValueError, match="ascending"):
        crop(image, BOXES["middle"], sizes=sizes)
