"""Face detectors behind one interface, whose boxes mean what a fit's box means."""

from jclnf.detect._base import Detector, check_min_face, find_faces, smallest_face
from jclnf.detect._face_detector import FaceDetector
from jclnf.detect._factory import DETECTORS, default, default_name, make_detector
from jclnf.detect._haar import HaarDetector
from jclnf.detect._mtcnn import MtcnnDetector
from jclnf.detect._yunet import YuNetDetector

__all__ = [
    "DETECTORS",
    "Detector",
    "FaceDetector",
    "HaarDetector",
    "MtcnnDetector",
    "YuNetDetector",
    "check_min_face",
    "default",
    "default_name",
    "find_faces",
    "make_detector",
    "smallest_face",
]
