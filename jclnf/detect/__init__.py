"""Face detectors behind one interface, whose boxes mean what a fit's box means."""

from jclnf.detect.base import Detector, find_faces
from jclnf.detect.factory import DETECTORS, make_detector
from jclnf.detect.haar import HaarDetector
from jclnf.detect.mtcnn import MtcnnDetector
from jclnf.detect.yunet import YuNetDetector

__all__ = [
    "DETECTORS",
    "Detector",
    "HaarDetector",
    "MtcnnDetector",
    "YuNetDetector",
    "find_faces",
    "make_detector",
]
