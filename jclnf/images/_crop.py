"""Cutting a square of one of a few sizes around a face, so that a fit is compiled only a few times.

A compiled fit is tied to the shape of its image. Images come in any size, so the host cuts a region
around the face and puts it into the smallest of a few square buckets: all images of a folder then
share a handful of compilations, and a face in one of 50 megapixels does not carry that to the
device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jclnf.errors import BoxError
from jclnf.images._check import check_grey

BUCKETS = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Sides of the square crops, in pixels. Doubling keeps the number of compilations small; the price
is up to four times the pixels, which costs only their transfer: a fit reads the same few thousand
samples from a crop of any size."""

MIN_BOX_SIDE = 8.0
"""Width and height in pixels under which a box is refused. At the coarsest scale a face is sampled
about 35 px wide, so a box this small already has every sample interpolated between few pixels."""

MAX_BOX_RATIO = 4.0
"""How many times the width (height) of its image a box may be wide (high)."""


@dataclass(frozen=True)
class Crop:
    """A square region of an image, with what is needed to go back to the whole image.

    A pixel `(x, y)` of the crop is the pixel `(x, y) + offset` of the image; the offset is whole
    pixels, so nothing is resampled. `FitResult.shifted(crop.offset)` brings a fit back.

    Attributes:
        image: `(side, side)` float32, grey 0-255; the image's own pixels, zero outside the image.
        offset: `(2,)` float32, whole numbers: x and y in the image of the crop's first pixel.
        box: `(4,)` float32, x, y, w, h of the face box in pixels of the crop.
    """

    image: np.ndarray
    offset: np.ndarray
    box: np.ndarray


def check_box(box: object, shape: Sequence[int]) -> np.ndarray:
    """Return `box` as `(4,)` float64 if a face can be fitted from it, and raise if not.

    A box may reach beyond its image, as that of a face cut off by the border does, as long as its
    centre is a point of the image: with the centre outside, more than half of the face is missing
    and what a fit returns is a guess.

    Args:
        box: x, y, w, h in pixels of the image: four numbers of any type, one row.
        shape: (h, w) of the image in pixels; further entries are ignored.

    Raises:
        BoxError: the box is not four finite numbers, is narrower or lower than `MIN_BOX_SIDE`, is
            more than `MAX_BOX_RATIO` times as large as the image, or has its centre outside it.
    """
    try:
        b = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise BoxError(f"box: expected four numbers x, y, w, h, got {box!r}") from e
    if b.shape != (4,):
        raise BoxError(f"box: expected four numbers x, y, w, h, got an array of shape {b.shape}")
    x, y, w, h = (float(v) for v in b)
    text = f"box x={x:g} y={y:g} w={w:g} h={h:g}"
    if not np.all(np.isfinite(b)):
        raise BoxError(f"{text}: holds a value that is not finite")
    if w <= 0 or h <= 0:
        raise BoxError(
            f"{text}: width and height must be positive; a box is x, y, w, h, not two corners"
        )
    if w < MIN_BOX_SIDE or h < MIN_BOX_SIDE:
        raise BoxError(
            f"{text}: too small to fit a face in; needs {MIN_BOX_SIDE:g} pixels each way, so "
            "enlarge the image if the face is really that small"
        )
    rows, columns = int(shape[0]), int(shape[1])
    if w > MAX_BOX_RATIO * columns or h > MAX_BOX_RATIO * rows:
        raise BoxError(
            f"{text}: more than {MAX_BOX_RATIO:g} times as large as the image of {columns} x {rows}"
            " pixels; are the box and the image in the same pixels?"
        )
    cx, cy = x + w / 2, y + h / 2
    if not (-0.5 <= cx <= columns - 0.5 and -0.5 <= cy <= rows - 0.5):
        raise BoxError(
            f"{text}: its centre is outside the image of {columns} x {rows} pixels, so most of "
            "the face cannot be seen"
        )
    return b


def crop(
    image: object, box: object, *, margin: float = 1.0, sizes: Sequence[int] = BUCKETS
) -> Crop:
    """Cut the region around `box` out of `image`, as a square of one of a few sizes.

    The region is the box enlarged on each side by `margin` times its width or height, and cut off
    at the border of the image. The result is the square of the smallest of `sizes` that holds the
    region, centred on it but within the image where that is large enough, and from the image's
    first pixel on where it is not: small coordinates round the least. It has the image's own
    pixels throughout, and is zero only outside the image. A region larger than all sizes gets
    the next multiple of the largest.

    A fit in the crop is the fit in the whole image (up to the float32 rounding of coordinates) as
    long as it reads nothing outside the region, because inside it both hold the same pixels at
    the same whole-pixel offset, and beyond the image's border both read zero. A margin of 1 is
    enough for that: at the coarsest scale (0.25 pixels per millimetre) the area read around a
    landmark reaches 0.3 of the box with a window of 11, and 0.5 at the corners of a window of 15;
    at finer scales less. That leaves the landmarks half a box to move beyond it.

    Args:
        image: `(h, w)` grey 0-255, as `check_grey` takes it.
        box: x, y, w, h of the face in pixels, tight around its outline (eyebrows to chin).
        margin: Enlargement on each side, in widths (heights) of the box.
        sizes: Sides of the squares to choose from, in pixels, ascending.

    Raises:
        ImageError: as `check_grey`.
        BoxError: as `check_box`.
        ValueError: `margin` is negative, or `sizes` are not positive and ascending.
    """
    if not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin must be a number of at least 0, got {margin}")
    if len(sizes) == 0 or sizes[0] <= 0 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f"sizes must be positive and ascending, got {tuple(sizes)}")
    pixels = check_grey(image)
    x, y, w, h = check_box(box, pixels.shape)
    x0, y0, side = region((x, y, w, h), pixels.shape, margin * w, margin * h, sizes)
    return Crop(
        image=cut(pixels, x0, y0, side).astype(np.float32, copy=False),
        offset=np.array([x0, y0], np.float32),
        box=np.array([x - x0, y - y0, w, h], np.float32),
    )


def region(
    box: Sequence[float] | np.ndarray,
    shape: Sequence[int],
    beside: float,
    above: float,
    sizes: Sequence[int] = BUCKETS,
) -> tuple[int, int, int]:
    """Where `crop` cuts: x and y of the square's first pixel, and its side.

    Args:
        box: x, y, w, h in pixels, of any place and size.
        shape: (h, w) of the image.
        beside: enlargement to the left and to the right of the box, in pixels.
        above: enlargement above and below it.
        sizes: as for `crop`.
    """
    x, y, w, h = box
    rows, columns = shape
    # The pixel after the last one that bilinear reading at the region's edge touches.
    left = max(0, int(np.floor(x - beside)))
    right = min(columns, int(np.ceil(x + w + beside)) + 1)
    top = max(0, int(np.floor(y - above)))
    bottom = min(rows, int(np.ceil(y + h + above)) + 1)
    longest = max(right - left, bottom - top)
    side = next((s for s in sizes if s >= longest), -(-longest // sizes[-1]) * sizes[-1])
    return _start(left, right, side, columns), _start(top, bottom, side, rows), side


def cut(pixels: np.ndarray, x0: int, y0: int, side: int) -> np.ndarray:
    """The square of an image that begins at pixel (x0, y0), 0 outside the image."""
    rows, columns = pixels.shape
    square = np.zeros((side, side), pixels.dtype)
    ys = slice(max(0, y0), min(rows, y0 + side))
    xs = slice(max(0, x0), min(columns, x0 + side))
    square[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0] = pixels[ys, xs]
    return square


def _start(low: int, high: int, side: int, extent: int) -> int:
    """Where a square of `side` around pixels `low` to `high` starts, of `extent` along an axis."""
    return min(max(0, (low + high - side) // 2), max(0, extent - side))
