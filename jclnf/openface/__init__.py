"""All that is OpenFace 2.2's: readers of its model files, its rules, and its table of results."""

from jclnf.openface._action_units import (
    AU_CELLS,
    AU_CHANNELS,
    AU_LANDMARKS,
    ActionUnitArrays,
    Predictor,
    find_action_units,
    read_action_units,
)
from jclnf.openface._csv import FaceMeasurements, OpenFaceTable, measure_faces
from jclnf.openface._early_termination import EarlyTermination
from jclnf.openface._install import (
    Installed,
    Manifest,
    Progress,
    download,
    install_from,
    installed_mains,
    models_folder,
    read_manifest,
)
from jclnf.openface._model import FRONTAL, ROTATIONS, load_openface, main_file, named_files, offers
from jclnf.openface._mtcnn import INPUT_SIDES, LayerArrays, find_mtcnn, pooled_side, read_mtcnn
from jclnf.openface._validator import LAYERS, Validator, View

__all__ = [
    "AU_CELLS",
    "AU_CHANNELS",
    "AU_LANDMARKS",
    "FRONTAL",
    "INPUT_SIDES",
    "LAYERS",
    "ROTATIONS",
    "ActionUnitArrays",
    "EarlyTermination",
    "FaceMeasurements",
    "Installed",
    "LayerArrays",
    "Manifest",
    "OpenFaceTable",
    "Predictor",
    "Progress",
    "Validator",
    "View",
    "download",
    "find_action_units",
    "find_mtcnn",
    "install_from",
    "installed_mains",
    "load_openface",
    "main_file",
    "measure_faces",
    "models_folder",
    "named_files",
    "offers",
    "pooled_side",
    "read_action_units",
    "read_manifest",
    "read_mtcnn",
]
