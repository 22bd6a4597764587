"""Action units of faces, by OpenFace's predictors: intensities and presences of facial movements.

A face is described by the histograms of its gradients, once it is turned upright and masked, and by
its shape (`describe`, `describe_openface`); linear predictors take that (`ActionUnits`), in videos
after the person's median has been taken away (`Person`, `People`).
"""

from jclnf.action_units._exact import describe, describe_batch, estimate
from jclnf.action_units._model import ActionUnits, check_detector, load_action_units
from jclnf.action_units._openface import Described, describe_openface
from jclnf.action_units._people import People
from jclnf.action_units._person import FrameUnits, Person, finish, finish_output

__all__ = [
    "ActionUnits",
    "Described",
    "FrameUnits",
    "People",
    "Person",
    "check_detector",
    "describe",
    "describe_batch",
    "describe_openface",
    "estimate",
    "finish",
    "finish_output",
    "load_action_units",
]
