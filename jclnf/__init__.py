"""jclnf: a differentiable Constrained Local Neural Field (CLNF) facial-landmark fitter in JAX.

Conventions, everywhere:

- Images are `(h, w)` arrays of grey levels 0-255, indexed `[y, x]`; what lies outside is 0.
- Points are `(x, y)` in pixels, x right, y down, pixel centres at integers.
- Boxes are `(x, y, w, h)` in pixels, tight around the face outline (eyebrows to chin, jaw to jaw).
- 3D is in millimetres, x right, y down, z away from the viewer.
- Angles are in radians; rotations are `Rx(rx) Ry(ry) Rz(rz)`, pitch, yaw, roll.
- Functions take one face; batches come from `jax.vmap` or `fit_images`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jclnf import errors, images, openface, space
from jclnf._clnf import CLNF
from jclnf.errors import JclnfError
from jclnf.files import load_model, save_model
from jclnf.fitting import FitResult, FitStatus, Model, fit, fit_images, fit_points
from jclnf.geometry import PDM, Pose
from jclnf.images import crop
from jclnf.openface import load_openface
from jclnf.params import Arithmetic, FitParams
from jclnf.runtime import enable_compilation_cache
from jclnf.tracking import Tracker, TrackParams, track, warm_up

if TYPE_CHECKING:
    from jclnf import annotations, detect, draw, evaluation, train

__version__ = "0.1.0"

__all__ = [
    "CLNF",
    "PDM",
    "Arithmetic",
    "FitParams",
    "FitResult",
    "FitStatus",
    "JclnfError",
    "Model",
    "Pose",
    "TrackParams",
    "Tracker",
    "annotations",
    "crop",
    "detect",
    "draw",
    "enable_compilation_cache",
    "errors",
    "evaluation",
    "fit",
    "fit_images",
    "fit_points",
    "images",
    "load_model",
    "load_openface",
    "openface",
    "save_model",
    "space",
    "track",
    "train",
    "warm_up",
]

_LATER = ("annotations", "detect", "draw", "evaluation", "train")


def __getattr__(name: str) -> Any:
    # What these need (Optax, mostly) is imported when it is asked for.
    if name in _LATER:
        return importlib.import_module(f"jclnf.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
