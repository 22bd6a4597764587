"""The model and the settings that the options of a command ask for."""

from typing import Any

from jclnf.fitting import Model
from jclnf.openface import FRONTAL, ROTATIONS
from jclnf.params import FitParams


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
