"""Faces turned and sized alike, in colour, masked outside the face: OpenFace's, to the byte.

The functions here follow OpenFace and OpenCV in where they round, since a last bit of the matrix
can change a byte of the face, and a byte in a flat area a good part of its descriptor.
"""

import cv2
import numpy as np

from jclnf.action_units._model import SCALE, SIDE

RIGID = np.array(
    [*range(1, 5), *range(12, 16), 27, 28, 29, *range(31, 37), 39, 40, 41, 42, 45, 46, 47],
    np.int32,
)
"""Landmarks that faces are aligned by: those that expressions move least."""
RAISED = np.array([0, *range(16, 27)])
"""Landmarks that are moved up for the mask: the brows and the ends of the jaw, so that the forehead
is part of the face."""
RAISE = 30.0
"""By how much, in pixels of the aligned face."""

_STARTS, _ENDS = [1, 0, 0], [2, 2, 1]
"""The corners that each side of a triangle goes from and to; it is opposite the corner of its own
number."""
_SLACK = 1e-5
"""Part by which sums of products of coordinates in single precision may be off, and more."""

_BITS, _FRACTIONS = 10, 5
"""Binary digits of a pixel in which OpenCV's `warpAffine` adds positions up, and interpolates."""
_F = np.float32


def warp_matrix(mean: np.ndarray, landmarks: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """The matrix `(2, 3)` float32 from image pixels to those of the aligned face.

    Args:
        mean: `(68, 3)` float32 mean shape, millimetres.
        landmarks: `(68, 2)` float32 pixels.
        translation: `(2,)` float32 pixels: what goes to the middle, the origin of the fitted shape.
    """
    reference, target_size = _standardised((_F(SCALE) * mean[:, :2].astype(_F))[RIGID])
    source, source_size = _standardised(landmarks.astype(_F)[RIGID])
    products = (source.astype(np.float64).T @ reference).astype(_F)
    turn = _F(target_size / source_size) * _nearest_rotation(products)
    x, y = translation.astype(_F)
    shift = _F(SIDE // 2) - (turn[:, 0] * x + turn[:, 1] * y)
    return np.concatenate([turn, shift[:, None]], axis=1)


def _standardised(points: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Points about their mean, divided by their root mean square distance from it; and that."""
    centred = points - points.mean(0, dtype=np.float64).astype(_F)
    size = _F(np.sqrt((centred * centred).sum(dtype=np.float64) / len(points)))
    return centred * _F(1 / np.float64(size)), size


def _nearest_rotation(products: np.ndarray) -> np.ndarray:
    """The rotation `V diag(1, det) U'` of the 2 x 2 singular values of `U S V'`, by OpenCV's
    one-sided Jacobi rotations in single precision."""
    first, second = products[:, 0], products[:, 1]
    v_first, v_second = np.array([1, 0], _F), np.array([0, 1], _F)
    for _ in range(30):
        a, b, p = (
            float(one.astype(np.float64) @ other)
            for one, other in ((first, first), (second, second), (first, second))
        )
        if abs(p) <= 2 * 2.0**-23 * np.sqrt(a * b):
            break
        p, beta = 2 * p, a - b
        gamma = float(np.hypot(p, beta))
        if beta < 0:
            sine = _F(np.sqrt((gamma - beta) / 2 / gamma))
            cosine = _F(p / (2 * gamma * float(sine)))
        else:
            cosine = _F(np.sqrt((gamma + beta) / (2 * gamma)))
            sine = _F(p / (2 * gamma * float(cosine)))
        first, second = cosine * first + sine * second, -sine * first + cosine * second
        v_first, v_second = cosine * v_first + sine * v_second, -sine * v_first + cosine * v_second
    sizes = [np.sqrt((one.astype(np.float64) ** 2).sum()) for one in (first, second)]
    if sizes[0] < sizes[1]:
        first, second, v_first, v_second = second, first, v_second, v_first
        sizes.reverse()
    u, v = np.empty((2, 2), _F), np.empty((2, 2), _F)
    v[:, 0], v[:, 1] = v_first, v_second
    for k, one in enumerate((first, second)):
        u[:, k] = one * _F(1 / sizes[k]) if sizes[k] > 0 else 0
    if not (np.array(sizes) > 0).all():  # all landmarks on one line
        u[:, 1] = (-u[1, 0], u[0, 0])
    sign = np.sign(np.linalg.det(u.astype(np.float64)) * np.linalg.det(v.astype(np.float64)))
    turned = (v.astype(np.float64) @ np.diag([1.0, sign])).astype(_F)
    return (turned.astype(np.float64) @ u.T).astype(_F)


def warped(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The image `(h, w, 3)` uint8 seen through a matrix from its pixels to those of the result,
    `(SIDE, SIDE, 3)` uint8; 0 outside. Positions are those of OpenCV 4's `warpAffine`, which are
    computed here since its versions and variants differ in them."""
    height, width = image.shape[:2]
    m = matrix.astype(np.float64)
    scale = 1 / (m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])
    inverse = np.array([[m[1, 1], -m[0, 1]], [-m[1, 0], m[0, 0]]]) * scale
    shift = -inverse[:, 0] * m[0, 2] - inverse[:, 1] * m[1, 2]
    steps = np.arange(SIDE, dtype=np.float64)
    unit = 1 << _BITS
    half = 1 << (_BITS - _FRACTIONS - 1)
    rows = np.rint((inverse[:, 1:] * steps + shift[:, None]) * unit)
    columns = np.rint(inverse[:, :1] * steps * unit)
    far = float(1 << 40)  # whatever lies so far is outside
    total = np.clip(rows[:, :, None] + columns[:, None, :], -far, far).astype(np.int64) + half
    position = total >> (_BITS - _FRACTIONS)
    pixel = np.clip(position >> _FRACTIONS, -2, [[[width]], [[height]]])
    # OpenCV reads 16-bit positions: of a large image it gets the part that they lie in.
    x0, y0 = np.clip(pixel.reshape(2, -1).min(1), 0, [width - 1, height - 1])
    x1, y1 = np.clip(pixel.reshape(2, -1).max(1) + 2, [x0 + 1, y0 + 1], [width, height])
    places = (pixel - [[[x0]], [[y0]]]).astype(np.int16).transpose(1, 2, 0)
    ones = 1 << _FRACTIONS
    a, b = (position & (ones - 1)).astype(np.uint16)
    part = np.ascontiguousarray(image[y0:y1, x0:x1])
    sampled = cv2.remap(
        part, np.ascontiguousarray(places), b * np.uint16(ones) + a, cv2.INTER_LINEAR
    )
    return np.asarray(sampled)


def mask_points(matrix: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The landmarks `(68, 2)` float32 in the aligned face, those of `RAISED` moved up."""
    turned = (landmarks.astype(np.float64) @ matrix[:, :2].T.astype(np.float64)).astype(_F)
    points = turned + matrix[:, 2]
    points[RAISED, 1] = points[RAISED, 1].astype(np.float64) - RAISE
    return points


def face_mask(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Which pixels lie in a triangle or on its border, `(SIDE, SIDE)` bool, as single precision
    tells it.

    Args:
        points: `(68, 2)` float32 pixels of the aligned face.
        triangles: `(t, 3)` of them.
    """
    # The first axis is that of x and y, the next that of the corners, or sides, of a triangle.
    corners = np.ascontiguousarray(points[triangles].T)
    start = corners[:, _STARTS]
    direction = corners[:, _ENDS] - start
    of_corner = _cross(direction, corners - start)
    low = np.clip(np.ceil(corners.min(1)), 0, SIDE).astype(np.int64)
    high = np.clip(np.floor(corners.max(1)) + 1, 0, SIDE).astype(np.int64)
    # Of each row of each triangle's box, which pixels are inside certainly, and which perhaps.
    counts = np.maximum(high[1] - low[1], 0)
    which = np.repeat(np.arange(len(triangles)), counts)
    y = np.arange(len(which)) - np.repeat(counts.cumsum() - counts - low[1], counts)
    low_x, high_x = low[0, which], np.maximum(low[0], high[0])[which]
    inwards = (np.sign(of_corner) * direction).astype(np.float64)
    (x0, y0), (dx, dy) = (sides.take(which, 2) for sides in (start.astype(np.float64), inwards))
    level = dx * (y - y0)
    slack = _SLACK * (np.abs(level) + np.abs(dy) * (np.abs(x0) + SIDE))
    ends = dy >= 0  # the side ends the row's pixels, or else they begin at it
    masks = []
    for reach in (level - slack, level + slack):
        with np.errstate(divide="ignore", invalid="ignore"):
            x = reach / np.abs(dy)
        x = np.where(np.isnan(x), np.inf, x)  # a side that is a part of the row
        begin = np.where(ends, -np.inf, x0 - x).max(0)
        end = np.where(ends, x0 + x, np.inf).min(0)
        begin = np.clip(np.ceil(begin), low_x, high_x).astype(np.int64)
        end = np.clip(np.floor(end) + 1, begin, high_x).astype(np.int64)
        # How many begin at each pixel, less those that ended before it.
        begun, ended = (
            np.bincount(y * (SIDE + 1) + x, minlength=SIDE * (SIDE + 1)) for x in (begin, end)
        )
        masks.append((begun - ended).reshape(SIDE, -1).cumsum(1)[:, :-1] > 0)
    mask, perhaps = masks
    # What lies so near to a border is told by the rule itself.
    for pixel in np.argwhere(perhaps & ~mask)[:, ::-1, None]:
        inside = (_cross(direction, pixel[..., None].astype(_F) - start) * of_corner >= 0).all(0)
        mask[pixel[1], pixel[0]] = (inside & ((pixel >= low) & (pixel < high)).all(0)).any()
    return mask


def _cross(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(one[0] * other[1] - other[0] * one[1])


def aligned_face(
    image: np.ndarray,
    landmarks: np.ndarray,
    mean: np.ndarray,
    translation: np.ndarray,
    triangles: np.ndarray,
) -> np.ndarray:
    """A face `(SIDE, SIDE, 3)` uint8, aligned and 0 outside of its mask; arguments are those of the
    functions above."""
    matrix = warp_matrix(mean, landmarks, translation)
    mask = face_mask(mask_points(matrix, landmarks), triangles)
    return warped(image, matrix) * mask[..., None]
