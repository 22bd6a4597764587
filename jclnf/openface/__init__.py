"""Readers of OpenFace 2.2"s model files."""

from jclnf.openface._csv import FaceMeasurements, OpenFaceTable, measure_faces
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
from jclnf.openface._model import load_openface, main_file, named_files, offers
from jclnf.openface._mtcnn import INPUT_SIDES, LayerArrays, pooled_side, read_mtcnn

__all__ = [
    "INPUT_SIDES",
    "FaceMeasurements",
    "Installed",
    "LayerArrays",
    "Manifest",
    "OpenFaceTable",
    "Progress",
    "download",
    "install_from",
    "installed_mains",
    "load_openface",
    "main_file",
    "measure_faces",
    "models_folder",
    "named_files",
    "offers",
    "pooled_side",
    "read_manifest",
    "read_mtcnn",
]
