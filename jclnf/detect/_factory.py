"""The detector that a line of text names, as on the command line."""

import importlib
import os
import sys

from jclnf.detect._base import Detector
from jclnf.errors import DetectorError, did_you_mean
from jclnf.files import DEFAULT_MODEL, find_model
from jclnf.openface import find_mtcnn

DETECTORS = (
    "jclnf (its own network), haar (OpenCV's cascades), mtcnn or mtcnn:PATH (OpenFace's networks), "
    "yunet:FILE.onnx (OpenCV's network), or module:function (your own)"
)
"""The names that there are, in words."""


def default() -> Detector:
    """The detector that everything in jclnf uses unless told otherwise: `FaceDetector()`."""
    return make_detector()


def default_name(model: str | None = None, *, openface: bool = False) -> str:
    """The name, as `make_detector` takes it, of the detector that the commands use if none is
    named.

    With OpenFace's landmark detectors, and for tables like OpenFace's, it is the face detector that
    OpenFace's programs use, where that is installed or lies beside the model; else jclnf's own.

    Args:
        model: As `load_model` takes it.
        openface: Whether a table like OpenFace's is to be written.

    Raises:
        ModelFileError: there is no model of that name.
    """
    file = find_model(model or DEFAULT_MODEL)
    where = find_mtcnn(file) if openface or file.suffix != ".safetensors" else None
    if where is None:
        return "jclnf"
    return f"mtcnn:{where}" if where else "mtcnn"


def make_detector(spec: str | None = None) -> Detector:
    """Make the detector that `spec` names.

    Args:
        spec: One of

            - `jclnf`, or None: its own network, see `FaceDetector`;
            - `haar`: OpenCV's cascades, see `HaarDetector`;
            - `mtcnn`: OpenFace's networks where they are installed; `mtcnn:PATH`: those of
              OpenFace's model folder, its `mtcnn_detector` folder or list file, see
              `MtcnnDetector`;
            - `yunet:FILE.onnx`: OpenCV's network in a file of the user's, see `YuNetDetector`;
            - `module:function`: a `Detector` of the user's own, in a module that Python finds, also
              in the current folder; of a class an object is made, without arguments.

    Raises:
        DetectorError: nothing of that kind, or the user's own cannot be imported.
        JclnfError: what the detector needs is missing or damaged.
    """
    spec = "jclnf" if spec is None else spec
    kind, colon, rest = spec.partition(":")
    if kind == "jclnf" and not colon:
        from jclnf.detect._face_detector import FaceDetector

        return FaceDetector()
    if kind == "haar" and not colon:
        from jclnf.detect._haar import HaarDetector

        return HaarDetector()
    if kind == "mtcnn" and (rest or not colon):
        from jclnf.detect._mtcnn import MtcnnDetector

        return MtcnnDetector(rest or None)
    if kind == "yunet" and rest:
        from jclnf.detect._yunet import YuNetDetector

        return YuNetDetector(rest)
    if kind in ("haar", "mtcnn", "yunet", "boxes") or not (kind and rest):
        near = did_you_mean(kind, ("jclnf", "haar", "mtcnn", "yunet"))
        raise DetectorError(f"{spec!r} is no detector; there are {DETECTORS}{near}")
    return _own(spec, kind, rest)


def _own(spec: str, module: str, path: str) -> Detector:
    """Import a user's detector: the attribute `path` of a module."""
    # As `python -m` does; last, so that no file there hides an installed module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as e:  # whatever the user's module raises
        raise DetectorError(
            f"{spec}: {module} cannot be imported ({type(e).__name__}: {e}); there are {DETECTORS}"
        ) from e
    for name in path.split("."):
        if not hasattr(found, name):
            raise DetectorError(f"{spec}: {module} has no {path}; name a function of it")
        found = getattr(found, name)
    if isinstance(found, type):
        try:
            found = found()
        except Exception as e:
            raise DetectorError(
                f"{spec}: cannot be made without arguments ({type(e).__name__}: {e})"
            ) from e
    if not callable(found):
        raise DetectorError(f"{spec}: of type {type(found).__name__}, which cannot be called")
    return found
