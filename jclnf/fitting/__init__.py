"""The fit of a face: the mean shifts, the regularised updates, and what is made of the result."""

from jclnf.fitting._batch import crops_of_one_size, distribute, fit_images, map_everywhere, padded
from jclnf.fitting._confidence import (
    FACE_LIMIT,
    LANDMARK_LIMIT,
    AbstractConfidence,
    Confidence,
    characteristics,
)
from jclnf.fitting._fit import (
    check_inputs,
    check_levels,
    cpu_options,
    fit,
    known_options,
    prepared,
    replicate,
)
from jclnf.fitting._from_points import fit_points
from jclnf.fitting._hypotheses import fit_face, initial_state
from jclnf.fitting._mapping import map_faces, one_by_one
from jclnf.fitting._model import Model, Part, StartRule
from jclnf.fitting._postprocess import postprocess, read_off
from jclnf.fitting._result import FitResult, FitStatus, PartResult, Trace, likelihood_of
from jclnf.fitting._scales import fit_from
from jclnf.fitting._start import (
    START_MARGIN,
    START_SIZE,
    LearnedStart,
    decode_start,
    start_network,
    start_shapes,
)
from jclnf.fitting._uncertainty import Uncertainty

__all__ = [
    "FACE_LIMIT",
    "LANDMARK_LIMIT",
    "START_MARGIN",
    "START_SIZE",
    "AbstractConfidence",
    "Confidence",
    "FitResult",
    "FitStatus",
    "LearnedStart",
    "Model",
    "Part",
    "PartResult",
    "StartRule",
    "Trace",
    "Uncertainty",
    "characteristics",
    "check_inputs",
    "check_levels",
    "cpu_options",
    "crops_of_one_size",
    "decode_start",
    "distribute",
    "fit",
    "fit_face",
    "fit_from",
    "fit_images",
    "fit_points",
    "initial_state",
    "known_options",
    "likelihood_of",
    "map_everywhere",
    "map_faces",
    "one_by_one",
    "padded",
    "postprocess",
    "prepared",
    "read_off",
    "replicate",
    "start_network",
    "start_shapes",
]
