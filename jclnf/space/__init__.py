"""The camera"s frame: cameras, head pose and gaze in millimetres and radians."""

from jclnf.space._camera import Camera
from jclnf.space._gaze import EYES, Gaze, gaze, has_gaze
from jclnf.space._head_pose import HeadPose, head_pose, landmarks_in_space

__all__ = [
    "EYES",
    "Camera",
    "Gaze",
    "HeadPose",
    "gaze",
    "has_gaze",
    "head_pose",
    "landmarks_in_space",
]
