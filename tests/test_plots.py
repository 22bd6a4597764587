import numpy as np
import pytest

from jclnf import draw


def face(size, n=68, seed=0):
    """Points spread over a square of that size whose corner is at (size, size)."""
    points = np.random.default_rng(seed).uniform(size, 2 * size, (n, 2))
    points[0], points[-1] = (size, size), (2 * size, 2 * size)
    return points


def changed(before, after):
    before = np.repeat(before[..., None], 3, axis=2) if before.ndim == 2 else before
    return np.any(before != after, axis=2)


@pytest.mark.parametrize("size", [20, 100, 400, 1500])
@pytest.mark.parametrize("n", [68, 5])
def test_draws_at_the_points_and_not_elsewhere(size, n):
    image = np.full((3 * size, 3 * size), 100, np.uint8)
    points = face(size, n)
    drawn = draw.landmarks(image, points)
    assert drawn.shape == (3 * size, 3 * size, 3)
    assert drawn.dtype == np.uint8
    touched = changed(image, drawn)
    x, y = np.rint(points).astype(int).T
    assert np.all(touched[y, x])
    low, high = int(0.95 * size) - 3, int(2.05 * size) + 3
    outside = touched.copy()
    outside[low:high, low:high] = False
    assert not outside.any()


def test_the_image_given_is_not_changed():
    for shape in ((200, 200), (200, 200, 3)):
        image = np.full(shape, 100, np.uint8)
        drawn = draw.landmarks(image, face(60), box=(60, 60, 60, 60), label="1")
        assert np.all(image == 100)
        assert not np.shares_memory(image, drawn)


def test_subpixel():
    image = np.zeros((60, 60), np.uint8)
    one, other = (draw.landmarks(image, np.array([[30 + d, 30.0]])) for d in (0.0, 0.5))
    assert np.any(one != other)


def test_line_width_follows_the_face():
    def touched(size):
        image = np.zeros((3 * size, 3 * size), np.uint8)
        return changed(image, draw.landmarks(image, face(size))).mean()

    assert touched(1600) == pytest.approx(touched(800), rel=0.2)


def test_invisible_points_are_hollow():
    image = np.zeros((900, 900), np.uint8)
    points = np.array([[300.0, 300.0], [600.0, 600.0]])
    drawn = draw.landmarks(image, points, visible=np.array([True, False]))
    assert np.all(drawn[300, 300] == 255)
    assert np.all(drawn[600, 600] == 0)
    assert drawn[590:611, 590:611].max() > 150


def test_box_and_label():
    image = np.zeros((400, 400), np.uint8)
    plain = draw.landmarks(image, face(100))
    boxed = draw.landmarks(image, face(100), box=(90, 80, 150, 160))
    touched = changed(plain, boxed)
    for x, y in ((90, 150), (240, 150), (150, 80), (150, 240)):
        assert touched[y, x]
    # A label stays inside the image, wherever the face is.
    for shift in (0, -95, 250):
        labelled = draw.landmarks(image, face(100) + shift, label="12")
        assert changed(draw.landmarks(image, face(100) + shift), labelled).sum() > 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, -1e12])
def test_wild_numbers(bad):
    image = np.zeros((200, 200), np.uint8)
    points = face(60)
    points[40] = bad
    drawn = draw.landmarks(image, points, box=(0, bad, 10, 10))
    assert np.any(drawn)
    draw.landmarks(image, np.full((68, 2), bad), label="1", box=(bad, bad, bad, bad))


def test_one_pixel_image():
    assert draw.landmarks(np.zeros((1, 1), np.uint8), np.zeros((68, 2)), label="1").shape == (
        1,
        1,
        3,
    )


@pytest.mark.parametrize(
    ("image", "points", "options", "message"),
    [
        (np.zeros((9, 9), np.float32), np.zeros((5, 2)), {}, "image"),
        (np.zeros((9, 9, 4), np.uint8), np.zeros((5, 2)), {}, "image"),
        (np.zeros((9, 9), np.uint8), np.zeros((2, 5)), {}, "points"),
        (np.zeros((9, 9), np.uint8), np.zeros((5, 2)), {"visible": np.ones(4, bool)}, "visible"),
    ],
)
def test_bad_arguments(image, points, options, message):
    with pytest.raises(ValueError, match=message):
        draw.landmarks(image, points, **options)
