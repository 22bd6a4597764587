"""The device, the model and the settings that the options of a command ask for."""

from typing import Any

from jclnf.fitting import Model
from jclnf.openface import FRONTAL, ROTATIONS
from jclnf.params import FitParams
from jclnf.runtime import announce_compilation, enable_compilation_cache, say, use_device


def start_jax(options: Any) -> None:
    """Before the first computation of a command: the cache, the device, and what is said while
    something is compiled. Raises ParamsError if there is no such device."""
    enable_compilation_cache()
    announce(options.quiet, options.compiling)
    if options.device is not None:
        use_device(options.device)


def announce(quiet: bool, compiling: str) -> None:
    """Say so whenever something is compiled that people have to wait for."""
    announce_compilation(None if quiet else lambda: say(compiling))


def fit_params(options: Any, model: Model) -> FitParams:
    """The model's settings with those that options give. Raises ParamsError."""
    params = model.defaults
    if getattr(options, "openface_csv", False) and model.start is None:
        params = params.replace(arithmetic="openface", rotations=FRONTAL)
    names = ("arithmetic", "iterations", "windows")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.starts is not None:
        changes["rotations"] = ROTATIONS if options.starts > 1 else None
    return params.replace(**changes)
