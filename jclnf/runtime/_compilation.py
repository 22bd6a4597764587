"""What JAX compiles, noticed while it does: for whoever waits in front of a terminal."""

import threading
from collections.abc import Callable
from time import monotonic

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
PATIENCE = 2.0
"""Seconds after which a program that is still not there is being compiled: one that the compilation
cache has is loaded in less."""
_TOGETHER = 5.0
"""Programs of which one begins to be compiled so many seconds after another, or sooner, are one
wait."""


def announce_compilation(say: Callable[[], None] | None, *, patience: float = PATIENCE) -> None:
    """Have it said whenever JAX is compiling something that takes long.

    Programs that are compiled one after the other are announced once. What takes less than
    `patience`, as what comes from the compilation cache does, is not.

    Args:
        say: called meanwhile, from another thread; None ends the announcements.
        patience: seconds that a compilation has lasted before it is announced.
    """
    _watch.begin()
    _watch.say, _watch.patience = say, patience


def programs_compiled() -> int:
    """How many programs JAX has compiled, or loaded from its cache, since this was first called."""
    _watch.begin()
    return _watch.programs


class _Watch:
    """Listens to JAX, whose listeners are the whole process's."""

    def __init__(self) -> None:
        self.say: Callable[[], None] | None = None
        self.patience = PATIENCE
        self.programs = 0
        self._lock = threading.Lock()
        self._listening = False
        self._timers: dict[int, threading.Timer] = {}  # by the thread that compiles
        self._slow: set[int] = set()
        self._last_end = float("-inf")

    def begin(self) -> None:
        import jax.monitoring

        with self._lock:
            if not self._listening:
                self._listening = True
                jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:  # noqa: ARG002
        thread = threading.get_ident()
        if event == _LOWERED and self.say is not None:
            timer = threading.Timer(self.patience, self._announce, (thread, monotonic()))
            timer.daemon = True
            with self._lock:
                self._timers[thread] = timer
            timer.start()
        elif event == _COMPILED:
            with self._lock:
                self.programs += 1
                timer_or_none = self._timers.pop(thread, None)
                if thread in self._slow:
                    self._slow.remove(thread)
                    self._last_end = monotonic()
            if timer_or_none is not None:
                timer_or_none.cancel()

    def _announce(self, thread: int, began: float) -> None:
        with self._lock:
            if thread not in self._timers:  # it has just ended
                return
            new = not self._slow and began - self._last_end > _TOGETHER
            self._slow.add(thread)
            say = self.say
        if new and say is not None:
            say()


_watch = _Watch()
