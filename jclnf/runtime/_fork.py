"""Forks of a process in which JAX is running: an error there, at once, instead of a hang."""

import os
import sys

from jclnf.errors import JclnfError

_forked = False


def _note_fork() -> None:
    global _forked
    bridge = sys.modules.get("jax._src.xla_bridge")
    _forked = _forked or (bridge is not None and bridge.backends_are_initialized())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def check_process() -> None:
    """Raise in the fork of a process in which JAX was running: what it computes never ends there.

    Raises:
        JclnfError: says what to do instead.
    """
    if _forked:
        raise JclnfError(
            "this process is a fork of one in which JAX was running (a model was loaded there), "
            "and JAX's threads are not in it: start processes with "
            'multiprocessing.get_context("spawn"), or load the model after the fork only'
        )
