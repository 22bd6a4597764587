"""Cuts: whether a face seen in a frame is the one that was there before, or another in its place.

A cut changes the whole frame and the texture of the face at once. A flash or a lamp changes little
but brightness, which is taken out; a pan changes the frame, and a turn of the head a part of the
face. The frames are to follow on each other as those of a video do, or every third of them.
"""

import cv2
import numpy as np

SAME_SCENE = 0.75
"""Likeness of two frames, -1 to 1, under which the second may be one of another scene."""
OTHER_SCENE = 0.4
"""The same under which it is that, if no face is seen any more."""
SAME_TEXTURE = 0.65
"""Likeness of a face's texture before and after that, under which the face is another."""

OVERVIEW, TEXTURE = (24, 32), (32, 32)
"""Rows and columns of what is compared."""
_SATURATED = 250
_MOST_SATURATED = 0.25
_LEAST_CONTRAST = 2.0


class Scenes:
    """What the last frames and the faces in them, by their numbers, looked like.

    Args:
        notice: if false, nothing is ever taken for a cut.
    """

    def __init__(self, notice: bool = True) -> None:
        self._notice = notice
        self.likeness = 1.0
        """Of the last frame and the one before it."""
        self.judged = True
        """Whether the last frame shows anything, and is not, say, black or a flash."""
        self._last: np.ndarray | None = None
        # The last frame before the doubts.
        self._before: np.ndarray | None = None
        self._textures: dict[int, np.ndarray] = {}
        self._doubts: set[int] = set()

    def look(self, grey: np.ndarray) -> None:
        """Go on to a frame, `(h, w)` grey levels."""
        if not self._notice:
            return
        # Every n-th pixel is enough for a mean.
        step = max(1, max(grey.shape) // 320)
        small = _reduced(np.ascontiguousarray(grey[::step, ::step]), OVERVIEW)
        self.judged, now = _shows(small), _normalised(small)
        self.likeness = 1.0 if self._last is None else _likeness(self._last, now)
        if self.likeness < SAME_SCENE:
            if not self._doubts:
                self._before = self._last
            self._doubts |= set(self._textures)
        if self._before is not None and _likeness(self._before, now) >= SAME_SCENE:
            self._doubts.clear()  # it was a flash
        self._last = now

    def is_other(self, number: int, grey: np.ndarray, box: np.ndarray) -> bool:
        """Whether the face seen in a box of this frame is another than had the number before."""
        if not self._notice:
            return False
        y, x = (
            np.clip(np.rint(np.linspace(low, low + size, 128)), 0, most - 1).astype(int)
            for low, size, most in zip(box[1::-1], box[:1:-1], grey.shape, strict=True)
        )
        small = _reduced(grey.take(y, axis=0).take(x, axis=1), TEXTURE)
        if not _shows(small):
            return False
        if number in self._doubts:
            before, now = (_normalised(each) for each in (self._textures[number], small))
            if _likeness(before, now) < SAME_TEXTURE:
                return True
        self._doubts.discard(number)
        self._textures[number] = small
        return False

    def keep(self, numbers: set[int]) -> None:
        """Forget all faces but these."""
        self._textures = {n: texture for n, texture in self._textures.items() if n in numbers}
        self._doubts &= numbers

    def state(self) -> dict[str, np.ndarray]:
        """As `Tracker.state`."""
        numbers = list(self._textures)
        frames = [frame for frame in (self._last, self._before) if frame is not None]
        return {
            "overviews": np.array(frames, np.float32).reshape(-1, *OVERVIEW),
            "textures": np.array(list(self._textures.values()), np.float32).reshape(-1, *TEXTURE),
            "texture_ids": np.array(numbers, np.int64),
            "doubts": np.array([number in self._doubts for number in numbers], bool),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """As `Tracker.restore`."""
        frames = [*state["overviews"], None, None]
        self._last, self._before = frames[:2]
        numbers = [int(number) for number in state["texture_ids"]]
        self._textures = dict(zip(numbers, state["textures"], strict=True))
        self._doubts = {n for n, doubt in zip(numbers, state["doubts"], strict=True) if doubt}


def _reduced(grey: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(grey, shape[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def _shows(small: np.ndarray) -> bool:
    """Whether there is anything to be seen, and is not white with light."""
    saturated = np.mean(small >= _SATURATED)
    return bool(small.std() >= _LEAST_CONTRAST and saturated <= _MOST_SATURATED)


def _normalised(small: np.ndarray) -> np.ndarray:
    """With the brightness and the contrast of each place taken out; of mean 0 and length 1."""
    detail = small - cv2.GaussianBlur(small, (0, 0), 4.0)
    # A few grey levels are noise, and no contrast.
    even = detail / (np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), 4.0)) + 4.0)
    even = even - even.mean()
    return np.asarray(even / max(float(np.linalg.norm(even)), 1e-6), np.float32)


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b))
