"""From where a fit ended to where the landmarks are: a shape model of its own for reading them off.

A fit ends where responses, prior and the number of iterations bring it. That is off from what is
annotated by a little, in the same way for all faces of a kind: the prior draws faces towards the
mean shape, and responses peak where the picture is clear. A second shape model, for the same
parameters, can say where the annotation would be.
"""

import dataclasses

from jclnf.fitting._model import Model
from jclnf.fitting._result import FitResult
from jclnf.geometry import project, shape3d


def read_off(model: Model, result: FitResult) -> FitResult:
    """The result with its landmarks by the model's `readout`, if it has one; pose and shape, which
    a next fit would start from, stay as they are."""
    if model.readout is None:
        return result
    return dataclasses.replace(
        result,
        landmarks=project(model.readout, result.pose, result.shape),
        landmarks3d=shape3d(model.readout, result.shape) @ result.pose.matrix.T,
    )
