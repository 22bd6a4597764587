"""Drawing a face's landmarks over an image."""

from typing import Any

import numpy as np

from jclnf.errors import ImageError

# Runs of the 68-point (iBUG) scheme: first and last point, and whether the run is closed.
_CONTOURS_68 = (
    (0, 16, False),  # jaw
    (17, 21, False),  # eyebrows
    (22, 26, False),
    (27, 30, False),  # nose
    (31, 35, False),
    (36, 41, True),  # eyes
    (42, 47, True),
    (48, 59, True),  # lips
    (60, 67, True),
)
_DARK = (40, 30, 20)
_LINE = (120, 220, 60)
_POINT = (255, 255, 255)
_BOX = (60, 200, 255)

_RIM_SIZE = 200.0
"""Size in pixels of a face from which lines have dark rims; they would hide a smaller one."""

_BITS = 4  # of sub-pixel precision: OpenCV draws at coordinates in 1/16 of a pixel
_FAR = 2.0**20  # pixels; OpenCV's fixed-point coordinates overflow beyond 2^26


def landmarks(
    image: np.ndarray,
    points: Any,
    *,
    box: Any = None,
    visible: Any = None,
    label: str | None = None,
) -> np.ndarray:
    """Draw a face's landmarks over a copy of its image, to see where a fit lies.

    The 68 points of the iBUG scheme are joined to contours; of other schemes only the points are
    drawn. Line width and dots follow the size of the face. Points that are not finite are left out.

    Args:
        image: `(h, w)` or `(h, w, 3)` uint8; colours in OpenCV's order blue, green, red.
        points: `(n, 2)` x, y in pixels of the image, pixel centres at integers.
        box: x, y, w, h to draw as a rectangle, or None.
        visible: `(n,)` bool; points that are not visible are drawn hollow. All by default.
        label: Short text at the upper left corner of the face, such as its number.

    Returns:
        `(h, w, 3)` uint8 in OpenCV's order, a new array.

    Raises:
        ImageError: the image is of another shape or type.
        ValueError: another argument is.
    """
    import cv2

    if image.dtype != np.uint8 or not (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    ):
        raise ImageError(
            f"image: expected uint8 (h, w) or (h, w, 3), got {image.dtype} {image.shape}; convert "
            "it: np.clip(image, 0, 255).astype(np.uint8)"
        )
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points: expected shape (n, 2), got {points.shape}")
    seen = np.ones(len(points), bool) if visible is None else np.asarray(visible, bool)
    if seen.shape != (len(points),):
        raise ValueError(f"visible: expected shape ({len(points)},), got {seen.shape}")

    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()
    finite = np.all(np.isfinite(points), axis=1)
    size = _face_size(points[finite], box, image.shape)
    width = max(1, round(size / 220))
    if box is not None:
        _draw_box(canvas, np.asarray(box, np.float64), width)
    if len(points) == 68:
        for thickness, colour in _strokes(width, _LINE, size):
            for first, last, closed in _CONTOURS_68:
                run = np.arange(first, last + 1)
                if np.all(finite[run]):
                    cv2.polylines(
                        canvas, [_fixed(points[run])], closed, colour, thickness, cv2.LINE_AA, _BITS
                    )
    for point, shown in zip(points[finite], seen[finite], strict=True):
        _draw_point(canvas, point, size, bool(shown))
    if label and np.any(finite):
        _draw_label(canvas, label, points[finite].min(axis=0), size)
    return canvas


def _face_size(points: np.ndarray, box: Any, shape: tuple[int, ...]) -> float:
    """Return the size in pixels that lines follow: the face's, at most the image's."""
    sizes = [float(max(shape[:2]))]
    if len(points) > 1:
        sizes.append(float(np.ptp(points, axis=0).max()))
    elif box is not None and np.all(np.isfinite(np.asarray(box, np.float64))):
        sizes.append(float(max(box[2], box[3])))
    return min(sizes)


def _strokes(
    width: int, colour: tuple[int, int, int], size: float
) -> list[tuple[int, tuple[int, int, int]]]:
    """Return the (thickness, colour) to draw a line with: a dark rim first, if there is room."""
    rim = [(3 * width, _DARK)] if size >= _RIM_SIZE else []
    return [*rim, (width, colour)]


def _fixed(points: np.ndarray) -> np.ndarray:
    """Return `(..., 2)` pixels as the fixed-point integers that OpenCV draws at."""
    return np.rint(np.clip(points, -_FAR, _FAR) * 2**_BITS).astype(np.int32)


def _draw_box(canvas: np.ndarray, box: np.ndarray, width: int) -> None:
    import cv2

    if not np.all(np.isfinite(box)):
        return
    x, y, w, h = box
    corners = _fixed(np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]))
    for thickness, colour in _strokes(width, _BOX, max(w, h)):
        cv2.polylines(canvas, [corners], True, colour, thickness, cv2.LINE_AA, _BITS)


def _draw_point(canvas: np.ndarray, point: np.ndarray, size: float, filled: bool) -> None:
    import cv2

    x, y = (int(v) for v in _fixed(point))
    radius = max(0.5, size / 110) * 2**_BITS
    if filled:
        if size >= _RIM_SIZE:
            cv2.circle(canvas, (x, y), round(1.5 * radius), _DARK, cv2.FILLED, cv2.LINE_AA, _BITS)
        cv2.circle(canvas, (x, y), round(radius), _POINT, cv2.FILLED, cv2.LINE_AA, _BITS)
    else:
        ring = max(1, round(size / 300))
        for thickness, colour in _strokes(ring, _POINT, size):
            cv2.circle(canvas, (x, y), round(1.5 * radius), colour, thickness, cv2.LINE_AA, _BITS)


def _draw_label(canvas: np.ndarray, label: str, corner: np.ndarray, size: float) -> None:
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = max(0.35, size / 350)
    width = max(1, round(2 * scale))
    (w, h), _ = cv2.getTextSize(label, font, scale, width)
    rows, columns = canvas.shape[:2]
    # Beside the forehead if there is room, and always inside the image.
    x = int(np.clip(corner[0] - 1.3 * w, 0, max(0, columns - w)))
    y = int(np.clip(corner[1], h + 1, max(h + 1, rows - 1)))
    for thickness, colour in ((3 * width, _DARK), (width, _BOX)):
        cv2.putText(canvas, label, (x, y), font, scale, colour, thickness, cv2.LINE_AA)
