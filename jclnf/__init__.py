"""jclnf: a differentiable Constrained Local Neural Field (CLNF) facial-landmark fitter in JAX.

Conventions, everywhere:

- Images are `(h, w)` arrays of grey levels 0-255, indexed `[y, x]`; what lies outside is 0.
- Points are `(x, y)` in pixels, x right, y down, pixel centres at integers.
- Boxes are `(x, y, w, h)` in pixels, tight around the face outline (eyebrows to chin, jaw to jaw).
- 3D is in millimetres, x right, y down, z away from the viewer.
- Angles are in radians; rotations are `Rx(rx) Ry(ry) Rz(rz)`, pitch, yaw, roll.
- Functions take one face; batches come from `jax.vmap` or `fit_batch`.
"""

from typing import TYPE_CHECKING, Any

from jclnf._clnf import CLNF
from jclnf.annotations import AnnotatedFace, read_annotations, split_by_identity
from jclnf.errors import (
    AnnotationError,
    BoxError,
    DetectorError,
    ImageError,
    JclnfError,
    ModelFileError,
    ParamsError,
)
from jclnf.evaluation import Evaluation, evaluate
from jclnf.files import load_model, save_model
from jclnf.fitting import (
    OPENFACE_ROTATIONS,
    Confidence,
    EarlyTermination,
    FitResult,
    FitStatus,
    Model,
    Part,
    PartResult,
    Trace,
    fit,
    fit_batch,
    fit_from,
    fit_hypotheses,
    fit_points,
    fit_until_accepted,
)
from jclnf.geometry import PDM, Pose
from jclnf.images import Crop, crop
from jclnf.openface import load_openface
from jclnf.params import Arithmetic, FitParams
from jclnf.runtime import enable_compilation_cache
from jclnf.space import Camera, Gaze, HeadPose, gaze, head_pose, landmarks_in_space
from jclnf.tracking import TrackedFace, Tracker, TrackParams, TrackState, track, track_frame

if TYPE_CHECKING:
    from jclnf.train._loop import Course
    from jclnf.train._tune import Tuned, tune

__version__ = "0.1.0"

__all__ = [
    "CLNF",
    "OPENFACE_ROTATIONS",
    "PDM",
    "AnnotatedFace",
    "AnnotationError",
    "Arithmetic",
    "BoxError",
    "Camera",
    "Confidence",
    "Course",
    "Crop",
    "DetectorError",
    "EarlyTermination",
    "Evaluation",
    "FitParams",
    "FitResult",
    "FitStatus",
    "Gaze",
    "HeadPose",
    "ImageError",
    "JclnfError",
    "Model",
    "ModelFileError",
    "ParamsError",
    "Part",
    "PartResult",
    "Pose",
    "Trace",
    "TrackParams",
    "TrackState",
    "TrackedFace",
    "Tracker",
    "Tuned",
    "crop",
    "enable_compilation_cache",
    "evaluate",
    "fit",
    "fit_batch",
    "fit_from",
    "fit_hypotheses",
    "fit_points",
    "fit_until_accepted",
    "gaze",
    "head_pose",
    "landmarks_in_space",
    "load_model",
    "load_openface",
    "read_annotations",
    "save_model",
    "split_by_identity",
    "track",
    "track_frame",
    "tune",
]


def __getattr__(name: str) -> Any:
    # What training needs (Optax, mostly) is imported when it is asked for.
    if name in ("Course", "Tuned", "tune"):
        from jclnf.train import _loop as loop
        from jclnf.train import _tune as tune

        return {"Course": loop.Course, "Tuned": tune.Tuned, "tune": tune.tune}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
