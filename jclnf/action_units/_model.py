"""Linear predictors of action units, and the numbers of a face that they take."""

import os
from typing import Any

import equinox as eqx
import numpy as np

from jclnf.errors import ModelFileError, ParamsError
from jclnf.fitting import Model
from jclnf.geometry import PDM
from jclnf.openface import (
    AU_CELLS,
    AU_CHANNELS,
    AU_LANDMARKS,
    find_action_units,
    read_action_units,
)
from jclnf.params import to_device

SIDE = 112
"""Side of an aligned face, pixels."""
SCALE = 0.7
"""Pixels per millimetre of the mean shape in an aligned face."""
APPEARANCE = AU_CELLS * AU_CELLS * AU_CHANNELS
"""Numbers of a face's appearance; those of its geometry follow."""

HIGHEST = 5.0
"""Intensities are from 0 to this."""


class ActionUnits(eqx.Module):
    """Predictors of action units: `descriptor @ weights + biases`, a column for each output.

    The outputs are the intensities and then the presences, each in the order of the names. An
    intensity is meant to be from 0 to 5; a presence is decided by the sign of its output.
    """

    name: str = eqx.field(static=True)
    pdm: PDM
    """The shape model that the predictors' geometry is about."""
    triangles: np.ndarray
    """`(t, 3)` int32: the face's surface, by landmarks."""
    weights: np.ndarray
    """`(d, k)` float64."""
    biases: np.ndarray
    """`(k,)` float64; the predictors' own means are part of them."""
    intensities: tuple[str, ...] = eqx.field(static=True)
    """Names of the action units that have an intensity, such as AU01."""
    presences: tuple[str, ...] = eqx.field(static=True)
    """Names of those that have a presence."""
    dynamic: tuple[bool, ...] = eqx.field(static=True)
    """Of each output, whether the person's median is taken away from the descriptor first."""
    cutoffs: tuple[float, ...] = eqx.field(static=True)
    """Of each intensity, in which part of a person's frames it is taken to be 0; -1 of those that
    are not shifted."""
    classes: tuple[tuple[float, float], ...] = eqx.field(static=True)
    """Of each presence, the class if its output is over 0, and else."""

    @property
    def columns(self) -> list[str]:
        """Names of the outputs in OpenFace's tables: AU01_r, ..., AU01_c, ..."""
        return [f"{name}_r" for name in self.intensities] + [f"{n}_c" for n in self.presences]

    @property
    def uses_medians(self) -> bool:
        """Whether there are dynamic predictors."""
        return any(self.dynamic)

    def predict(self, descriptor: Any, median: Any = None) -> Any:
        """The outputs `(*b, k)` of descriptors `(*b, d)`; NumPy's in double precision.

        Args:
            descriptor: the numbers of faces.
            median: `(d,)` the person's median of them, for dynamic predictors; zeros if None, which
                only static predictors are made for.
        """
        outputs = descriptor @ self.weights + self.biases
        return outputs if median is None else outputs - self.of_median(median)

    def of_median(self, median: Any) -> Any:
        """What a person's median `(d,)` takes away from each output, `(k,)`."""
        return (median @ self.weights) * np.array(self.dynamic)

    def shown(self, outputs: Any) -> Any:
        """Intensities from 0 to 5 and classes 0 or 1 of outputs `(*b, k)`."""
        xp = outputs.__array_namespace__()
        n = len(self.intensities)
        clipped = xp.clip(outputs[..., :n], 0.0, HIGHEST)
        return xp.concatenate([clipped, self.classified(outputs[..., n:])], axis=-1)

    def classified(self, decisions: Any, which: int | slice = slice(None)) -> Any:
        """The classes, 0 or 1, of the outputs `(*b, c)` of presences, or of one of them, `(*b)`."""
        above, below = np.array(self.classes, np.float64).reshape(-1, 2)[which].T
        return decisions.__array_namespace__().where(decisions > 0, above, below)


def check_detector(model: Model) -> None:
    """Refuse a landmark detector that is not one of OpenFace's: predictors take its convention for
    granted, of where on a face each landmark is.

    Raises:
        ParamsError: it has other landmarks, or a learned start, which OpenFace's do not.
    """
    if model.pdm.n_landmarks != AU_LANDMARKS or model.start is not None:
        raise ParamsError(
            "action units need landmarks as OpenFace's detectors place them, which the model "
            f"{model.name} does not: give one of OpenFace's, such as --model clnf_general"
        )


def load_action_units(
    path: str | os.PathLike[str] | None = None,
    *,
    static: bool = False,
    model: str | os.PathLike[str] | None = None,
) -> ActionUnits:
    """Load OpenFace's predictors of action units.

    Args:
        path: OpenFace's folder `AU_predictors`, or a main file in it; looked for if not given, see
            `jclnf.openface.find_action_units`.
        static: those for photographs, which know nothing of the person, or else those for videos.
        model: the landmark detector's main file, beside which they are looked for first.

    Raises:
        ModelFileError: a file is missing, damaged, or does not go together with the others.
    """
    file = find_action_units(path, static=static, model=model)
    arrays = read_action_units(file)
    rows = {(one.name, one.presence): one for one in arrays.predictors}
    ordered = [rows[key] for key in sorted(rows, key=lambda key: (key[1], key[0]))]
    # OpenFace takes the means of the first file of each kind for all of that kind.
    means: dict[tuple[bool, bool], np.ndarray] = {}
    for one in arrays.predictors:
        means.setdefault((one.presence, one.dynamic), one.means)
    biases = [o.bias - float(means[o.presence, o.dynamic] @ o.weights) for o in ordered]
    intensities = [one for one in ordered if not one.presence]
    presences = [one for one in ordered if one.presence]
    if not intensities or not presences:
        lacking = "presence" if intensities else "intensity"
        raise ModelFileError(file, f"names no predictors of {lacking}")
    return ActionUnits(
        name=arrays.name,
        pdm=PDM(**{name: to_device(array) for name, array in arrays.pdm._asdict().items()}),
        triangles=arrays.triangles,
        weights=np.stack([one.weights for one in ordered], axis=1),
        biases=np.array(biases),
        intensities=tuple(one.name for one in intensities),
        presences=tuple(one.name for one in presences),
        dynamic=tuple(one.dynamic for one in ordered),
        cutoffs=tuple(one.cutoff for one in intensities),
        classes=tuple(one.classes for one in presences),
    )
