"""Faces followed over the frames of a video."""

from jclnf.tracking._cuts import OTHER_SCENE, Scenes
from jclnf.tracking._overlap import SAME_FACE, assign, overlap
from jclnf.tracking._smoothing import OneEuro
from jclnf.tracking._track import TrackParams, TrackState, track, track_frame
from jclnf.tracking._tracker import TrackedFace, Tracker, box_of, grey_of, tracked_face, usable
from jclnf.tracking._warm_up import warm_up

__all__ = [
    "OTHER_SCENE",
    "SAME_FACE",
    "OneEuro",
    "Scenes",
    "TrackParams",
    "TrackState",
    "TrackedFace",
    "Tracker",
    "assign",
    "box_of",
    "grey_of",
    "overlap",
    "track",
    "track_frame",
    "tracked_face",
    "usable",
    "warm_up",
]
