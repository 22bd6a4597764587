"""The fit of a face: the mean shifts, the regularised updates, and what is made of the result."""

from jclnf.fitting._batch import crops_of_one_size, fit_batch, replicate
from jclnf.fitting._confidence import FACE_LIMIT, LANDMARK_LIMIT, Confidence, characteristics
from jclnf.fitting._early_termination import likelihood_of
from jclnf.fitting._fit import check_inputs, finish, fit, place
from jclnf.fitting._from_points import fit_points
from jclnf.fitting._hypotheses import (
    FRONTAL,
    OPENFACE_ROTATIONS,
    best_of,
    fit_hypotheses,
    fit_until_accepted,
)
from jclnf.fitting._mapping import map_faces
from jclnf.fitting._model import EarlyTermination, Model, Part
from jclnf.fitting._readout import read_off
from jclnf.fitting._result import FitResult, FitStatus, PartResult, Trace
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
from jclnf.fitting._validator import LAYERS, Validator, View

__all__ = [
    "FACE_LIMIT",
    "FRONTAL",
    "LANDMARK_LIMIT",
    "LAYERS",
    "OPENFACE_ROTATIONS",
    "START_MARGIN",
    "START_SIZE",
    "Confidence",
    "EarlyTermination",
    "FitResult",
    "FitStatus",
    "LearnedStart",
    "Model",
    "Part",
    "PartResult",
    "Trace",
    "Uncertainty",
    "Validator",
    "View",
    "best_of",
    "characteristics",
    "check_inputs",
    "crops_of_one_size",
    "decode_start",
    "finish",
    "fit",
    "fit_batch",
    "fit_from",
    "fit_hypotheses",
    "fit_points",
    "fit_until_accepted",
    "likelihood_of",
    "map_faces",
    "place",
    "read_off",
    "replicate",
    "start_network",
    "start_shapes",
]
