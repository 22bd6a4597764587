"""The model and the settings that the options of a command ask for."""

from typing import Any

import jclnf
from jclnf.fitting import Model
from jclnf.params import FitParams


def fit_params(options: Any, model: Model) -> FitParams:
    """The model's settings with those that options give. Raises ParamsError."""
    names = ("arithmetic", "iterations", "windows")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    return model.defaults.replace(**changes)


def rotations(starts: int | None, model: Model) -> Any:
    """The start rotations of an option; None for the start that the model has by itself."""
    several = starts == 11 or (starts is None and model.start is None)
    return jclnf.OPENFACE_ROTATIONS if several else None
