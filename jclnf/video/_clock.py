"""Times of frames, of time stamps some of which may be wrong."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_AHEAD = 3
"""Time stamps that are looked at to judge the first of them."""


class Clock:
    """Times that increase and begin at 0.

    A time stamp that does not fit between those beside it is replaced by a time between theirs;
    if all that follow are earlier than the last, they are taken for those of a clock that was set
    back, and continued from there.

    Args:
        step: seconds from frame to frame where nothing else is known.
        tick: seconds that time stamps count.
    """

    def __init__(self, step: float, tick: float) -> None:
        self._step, self._tick = step, tick
        self._origin, self._last = 0.0, -math.inf
        self._replaced = self._restarts = 0

    def go_on(self, first: int, last: float) -> None:
        """Go on where the first time stamp was `first`, and the last frame's time `last`."""
        self._origin, self._last = first * self._tick, last

    @property
    def problems(self) -> list[str]:
        """A line for each kind of fault."""
        found = []
        if self._replaced:
            count = self._replaced
            what = "1 time stamp does" if count == 1 else f"{count} time stamps do"
            found.append(f"{what} not fit between those beside: times between theirs were taken")
        if self._restarts:
            found.append("its time stamps go back: the frames after that were taken to follow on")
        return found

    def times(self, stamped: Iterable[tuple[int | None, Item]]) -> Iterator[tuple[float, Item]]:
        """The time of each frame in place of its time stamp."""
        waiting: deque[tuple[float | None, Item]] = deque()
        for stamp, item in stamped:
            waiting.append((None if stamp is None else stamp * self._tick, item))
            if len(waiting) == _AHEAD:
                yield self._next([stamp for stamp, _ in waiting]), waiting.popleft()[1]
        while waiting:
            yield self._next([stamp for stamp, _ in waiting]), waiting.popleft()[1]

    def _next(self, stamps: list[float | None]) -> float:
        """The time of the first of some stamps."""
        if self._last == -math.inf:
            self._last = -self._step
            self._origin = self._beginning(stamps)
        last = self._last
        now, *later = [None if stamp is None else stamp - self._origin for stamp in stamps]
        if now is not None and now > last and not self._too_late(now, later):
            self._last = now
            return now
        known = [(count, time) for count, time in enumerate(later, 2) if time is not None]
        fits = [(count, time) for count, time in known if time > last]
        if fits:
            count, time = fits[0]
            guess = last + (time - last) / count
        else:
            guess = last + self._step
        if now is not None and known and not fits and last - now > 1.5 * self._tick:
            self._origin += now - guess
            self._restarts += 1
        elif now is not None:
            self._replaced += abs(now - guess) > 1.5 * self._tick
        self._last = guess
        return guess

    def _beginning(self, stamps: list[float | None]) -> float:
        """The stamp that is to be 0."""
        known = [(k, stamp) for k, stamp in enumerate(stamps) if stamp is not None]
        if len(known) == _AHEAD and known[1][1] < known[2][1] <= known[0][1]:
            del known[0]
        count, stamp = known[0] if known else (0, 0.0)
        return stamp - count * self._step

    def _too_late(self, now: float, later: list[float | None]) -> bool:
        """Whether it is this time that is wrong, where the next is not later."""
        if len(later) < 2 or later[0] is None or later[1] is None:
            return False
        if not self._last < later[0] <= now or not later[0] < later[1]:
            return False
        due = self._last + self._step
        return now >= later[1] or abs(now - due) > abs(later[0] - due)
