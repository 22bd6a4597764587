"""Settings of the running process, that the command line makes and a program may; its devices,
and what a person sees who waits for it."""

from jclnf.runtime._compilation import announce_compilation, programs_compiled
from jclnf.runtime._devices import check_jax, device_report, share_device, use_device
from jclnf.runtime._fork import check_process
from jclnf.runtime._interrupts import check_interrupted, interrupts_noted
from jclnf.runtime._kept import keep_traces, kept
from jclnf.runtime._process import (
    available_cores,
    enable_compilation_cache,
    keep_to_one_core,
    own_threads,
    silent_stderr,
    use_all_cores,
    use_one_thread_each,
)
from jclnf.runtime._progress import Meter, say

__all__ = [
    "Meter",
    "announce_compilation",
    "available_cores",
    "check_interrupted",
    "check_jax",
    "check_process",
    "device_report",
    "enable_compilation_cache",
    "interrupts_noted",
    "keep_to_one_core",
    "keep_traces",
    "kept",
    "own_threads",
    "programs_compiled",
    "say",
    "share_device",
    "silent_stderr",
    "use_all_cores",
    "use_device",
    "use_one_thread_each",
]
