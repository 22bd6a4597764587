"""The check that an array is a grey image that can be fitted.

Nothing is guessed: an array that is not a grey image in 0-255 is refused with the remedy.
"""

import os

import numpy as np

from jclnf.errors import ImageError

# Resampling and filtering overshoot the 0-255 of the image they started from.
_FLOAT_LOW, _FLOAT_HIGH = -64.0, 320.0


def check_grey(image: object) -> np.ndarray:
    """Return `image` as the NumPy array it is, if it is a grey image in 0-255; raise if not.

    Args:
        image: `(h, w)` of an integer type with values in 0-255, or of a floating-point type with
            values in about 0-255 (a little overshoot from resampling passes). Nothing is copied
            or converted.

    Raises:
        ImageError: another shape or type, no pixels, values that are not finite, or a range that
            is clearly another one; the message says how to convert.
    """
    a = np.asarray(image)
    if a.ndim == 3 and a.shape[2] in (3, 4):
        raise ImageError(
            f"image: shape {a.shape} is a colour image, and it may be RGB or BGR: "
            "convert it to grey first: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), or "
            "cv2.COLOR_BGR2GRAY for one from cv2.imread"
        )
    if a.ndim == 3 and 1 in (a.shape[0], a.shape[2]):
        raise ImageError(
            f"image: shape {a.shape}; remove the axis of length 1 with "
            f"image.squeeze({2 if a.shape[2] == 1 else 0})"
        )
    if image is None:
        raise ImageError("image: None; it was not read: check that its path is right")
    if isinstance(image, str | os.PathLike):
        raise ImageError(
            f"image: {image!r} is a path; read it first: jclnf.images.read_image(path)"
        )
    if a.ndim != 2:
        raise ImageError(f"image: expected a grey image of shape (h, w), got shape {a.shape}")
    if a.size == 0:
        raise ImageError(f"image: no pixels, shape {a.shape}")
    if a.dtype == np.uint8:
        return a
    if a.dtype.kind == "b":
        raise ImageError("image: holds booleans; give grey levels in 0-255")
    if a.dtype.kind not in "uif":
        raise ImageError(f"image: type {a.dtype} is not one of grey levels; convert to float32")
    low, high = float(a.min()), float(a.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("image: holds values that are not finite")
    found = f"image: {a.dtype} with values {low:g} to {high:g}"
    if a.dtype.kind == "f":
        if low >= 0 and 0 < high <= 1:
            raise ImageError(f"{found} looks like it is scaled to 0..1; multiply by 255")
        if -1 <= low < 0 and high <= 1:
            raise ImageError(f"{found} looks like it is scaled to -1..1; bring it to 0-255")
        if low < _FLOAT_LOW or high > _FLOAT_HIGH:
            raise ImageError(f"{found}, expected grey levels in 0-255; bring it to that range")
    elif low < 0 or high > 255:
        raise ImageError(
            f"{found}, expected grey levels in 0-255; divide one of 16 bits by 257, one of 12 by 16"
        )
    return a
