"""The interface of face detectors: the image that one is given, and a check of its boxes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jclnf.errors import DetectorError, ImageError, JclnfError
from jclnf.images import ImageFile


@runtime_checkable
class Detector(Protocol):
    """Anything that finds faces: a function or object called with an image.

    It is called with a grey image `(h, w)` uint8, or, if it has an attribute `wants_colour` that
    is true, with a colour one `(h, w, 3)` uint8 in OpenCV's order blue, green, red; upright. If it
    has an attribute `takes_min_face` that is true, it may be given by the keyword `min_face` the
    side in pixels of the smallest face that is wanted; the larger that is, the less time it takes.
    """

    def __call__(self, image: np.ndarray, /) -> Any:
        """Return the boxes of all faces, the largest first.

        Returns:
            `(k, 4)`, x, y, w, h in pixels of the image, pixel centres at integers; k may be 0. A
            box is tight around the face outline (eyebrows to chin, jaw to jaw) as that of `fit`,
            and may reach beyond the image. A detector whose own boxes mean something else
            corrects them.
        """
        ...


def find_faces(
    detector: Detector, image: np.ndarray | ImageFile, *, min_face: float | None = None
) -> np.ndarray:
    """Ask a detector for the faces of an image, of any kind of image and any detector.

    Args:
        detector: A `Detector`, which may be a user's own: what it returns is checked.
        image: `(h, w)` grey or `(h, w, 3)` blue, green, red uint8, or a photograph that was read;
            the detector gets grey or colour as it wants.
        min_face: Larger side in pixels of the smallest box wanted. By default as the detector has
            it: those of jclnf search for faces of a 36th of the image's longer side and more.

    Returns:
        `(k, 4)` float64, x, y, w, h in pixels of `image`, the largest first, without those that
        lie outside of it altogether.

    Raises:
        ImageError: `image` is none of these.
        DetectorError: the detector failed, or returned what are no boxes.
    """
    searched = _wanted(image, colour=bool(getattr(detector, "wants_colour", False)))
    height, width = searched.shape[:2]
    options = {}
    if check_min_face(min_face) is not None and getattr(detector, "takes_min_face", False):
        options["min_face"] = min_face
    try:
        returned = detector(searched, **options)
    except JclnfError:
        raise
    except Exception as e:  # whatever a user's function raises
        raise DetectorError(
            f"{name_of(detector)}: raised {type(e).__name__}: {e}; it is called with a uint8 array "
            f"of shape {searched.shape}"
        ) from e
    boxes = check_boxes(returned, name_of(detector))
    if min_face is not None and not options:
        boxes = boxes[boxes[:, 2:].max(axis=1, initial=0) >= min_face]
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inside = np.all((high > -0.5) & (low < (width - 0.5, height - 0.5)), axis=1)
    return largest_first(boxes[inside])


def check_min_face(pixels: float | None) -> float | None:
    """Return the side of the smallest face if it can be that. Raises DetectorError."""
    if pixels is not None and not 1 <= pixels < np.inf:
        raise DetectorError(f"min_face is {pixels!r}; give a face's side in pixels, such as 60")
    return pixels


def smallest_face(shape: tuple[int, ...], *pixels: float | None) -> float:
    """Return the side in pixels of the smallest face to search an image for: the first one that is
    given, or else a 36th of its longer side."""
    return next((side for side in pixels if side is not None), max(shape[:2]) / 36)


def check_boxes(returned: Any, detector: str) -> np.ndarray:
    """Return as a new `(k, 4)` float64 array what a detector of this name returned.

    Raises:
        DetectorError: it cannot be boxes: another shape, not finite, or without a size.
    """
    remedy = "a detector returns x, y, w, h of each face, an array of shape (k, 4)"
    if returned is None:
        raise DetectorError(f"{detector}: returned None: {remedy}, and one of length 0 for no face")
    try:
        boxes = np.array(returned, np.float64)
    except (TypeError, ValueError) as e:
        what = type(returned).__name__
        raise DetectorError(f"{detector}: returned a {what}, which is no array: {remedy}") from e
    if boxes.size == 0 and boxes.ndim > 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DetectorError(f"{detector}: returned shape {boxes.shape}: {remedy}")
    for box in boxes:
        x, y, w, h = box
        if not np.isfinite(box).all():
            raise DetectorError(f"{detector}: returned {box}, which is not finite: {remedy}")
        if not (w > 0 and h > 0):
            raise DetectorError(
                f"{detector}: returned the box {x:g}, {y:g}, {w:g}, {h:g} without a size: "
                f"{remedy}, where w and h are sizes, not the far corner"
            )
    return boxes


def largest_first(boxes: np.ndarray) -> np.ndarray:
    """Return boxes `(k, 4)` in the order of their areas, or rows that begin with one."""
    return boxes[np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")]


def name_of(detector: Any) -> str:
    """Return what to call a detector in messages."""
    name = getattr(detector, "__qualname__", None) or type(detector).__qualname__
    module = getattr(detector, "__module__", None) or type(detector).__module__
    return f"{module}:{name}"


def check_image(image: Any, *, colour: bool) -> np.ndarray:
    """Return `image` if it is a uint8 array `(h, w)`, or with `colour` `(h, w, 3)`.

    Raises:
        ImageError: it is not.
    """
    kind, form, axes = ("colour", "(h, w, 3)", 3) if colour else ("grey", "(h, w)", 2)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != axes
        or image.shape[2:] not in ((), (3,))
    ):
        what = f"{getattr(image, 'dtype', type(image).__name__)} "
        what += f"{getattr(image, 'shape', '')}"
        raise ImageError(f"image: detection takes a {kind} uint8 array {form}, got {what}")
    if image.size == 0:
        raise ImageError(f"image: no pixels, shape {image.shape}")
    return image


def _wanted(image: Any, *, colour: bool) -> np.ndarray:
    """Return an image in grey or, with `colour`, in blue, green, red."""
    if isinstance(image, ImageFile):
        return image.colour if colour else image.grey
    has_colour = getattr(image, "ndim", 2) == 3
    image = check_image(image, colour=has_colour)
    if has_colour == colour:
        return image
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if colour else cv2.COLOR_BGR2GRAY)


class Native:
    """An object of OpenCV's that one thread may use at a time, and that cannot be pickled.

    It is pickled, and copied, as what it was made by.

    Args:
        make: makes the object of the other arguments.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._made_by = make, *arguments
        self._object = make(*arguments)
        self._lock = threading.Lock()

    @contextmanager
    def used(self) -> Iterator[Any]:
        """The object, while no other thread has it."""
        with self._lock:
            yield self._object

    def __reduce__(self) -> tuple[Any, ...]:
        return Native, self._made_by
