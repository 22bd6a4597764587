"""How far something is that takes long: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any, TypeVar

from jclnf.runtime._compilation import programs_compiled
from jclnf.runtime._interrupts import check_interrupted

LINES_EVERY = 30.0
"""Seconds between lines where there is no terminal, as in a log."""
T = TypeVar("T")


class Meter:
    """How far something is, for a person; use it as a context, or around an iterable.

    >>> for batch in Meter("trunk", len(batches), unit="batches").over(batches):
    ...     train(batch)

    What is left of the time is reckoned without the compilations between two steps.

    Args:
        name: what it is.
        total: its steps, None if nobody knows.
        done: steps that were done before.
        unit: of what the steps are, in the plural.
        quiet: show nothing.
        lines: lines even on a terminal, as where several processes write to it.
        every: seconds between lines; `LINES_EVERY` if not given.
        scale: whether large numbers of steps are shown as k, M, G.
    """

    _said: float | None = None
    """When the last line was said, by whichever: short steps of long work shall not be silent."""

    def __init__(
        self,
        name: str = "",
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "",
        quiet: bool = False,
        lines: bool = False,
        every: float | None = None,
        scale: bool = False,
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self._done = self._before = done
        self._quiet, self._scale = quiet, scale
        self._every = LINES_EVERY if every is None else every
        self._programs = programs_compiled()
        self._begin = self._last = monotonic()
        if Meter._said is None:
            Meter._said = self._begin
        self._bar: Any = None
        if not quiet and not lines and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=name, total=total, initial=done, unit=f" {unit}", unit_scale=scale,
                leave=False, dynamic_ncols=True,
            )  # fmt: skip

    def step(self, count: int = 1) -> None:
        """So many more are done; raises KeyboardInterrupt after a Ctrl-C that got lost."""
        check_interrupted()
        self._done += count
        now, programs = monotonic(), programs_compiled()
        waited = now - self._last if programs > self._programs else 0.0
        self._last, self._programs = now, programs
        self._begin += waited
        if self._bar is not None:
            # tqdm cannot pause, so its start is moved.
            self._bar.desc = self.name
            self._bar.start_t += waited
            self._bar.last_print_t += waited
            self._bar.update(count)
        elif not self._quiet and now - (Meter._said or now) >= self._every:
            Meter._said = now
            say(self.line())

    def line(self) -> str:
        """How far it is, in words."""
        from tqdm import tqdm

        elapsed = self._last - self._begin
        rate = (self._done - self._before) / elapsed if elapsed > 0 else 0.0
        shown = tqdm.format_sizeof if self._scale else "{:.3g}".format
        done = shown(self._done) if self._scale else self._done
        of = "" if self.total is None else f" of {self.total}"
        text = f"{self.name}: {done}{of} {self.unit}"
        if rate > 0:
            text += f", {shown(rate)} a second"
            if self.total is not None:
                left = max(self.total - self._done, 0) / rate
                text += f", {tqdm.format_interval(left)} left"
        return text

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each a step when the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.step()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def say(text: str, stream: Any = None) -> None:
    """Print a line on a stream, standard output by default, above the bar if one is shown."""
    from tqdm import tqdm

    stream = sys.stdout if stream is None else stream
    tqdm.write(text, file=stream)
    stream.flush()
