"""Ctrl-C, also where Python would lose it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_noted = threading.Event()


@contextmanager
def interrupts_noted() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as always, and `check_interrupted` raises it again.

    In destructors and some callbacks, as JAX has them, Python only prints what is raised: without
    this, a Ctrl-C that arrives there would do nothing. Where Ctrl-C is handled otherwise already,
    or in another thread than the main one, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before is not signal.default_int_handler:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        _noted.set()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _noted.clear()


def check_interrupted() -> None:
    """Raise KeyboardInterrupt after a Ctrl-C within `interrupts_noted`: between images or frames,
    say."""
    if _noted.is_set():
        raise KeyboardInterrupt
