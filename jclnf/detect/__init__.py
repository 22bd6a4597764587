"""Face detectors behind one interface, whose boxes mean what a fit"s box means."""

from jclnf.detect._base import Detector, find_faces
from jclnf.detect._factory import DETECTORS, make_detector
from jclnf.detect._haar import HaarDetector
from jclnf.detect._mtcnn import MtcnnDetector
from jclnf.detect._yunet import YuNetDetector

__all__ = [
    "DETECTORS",
    "Detector",
    "HaarDetector",
    "MtcnnDetector",
    "YuNetDetector",
    "find_faces",
    "make_detector",
]
