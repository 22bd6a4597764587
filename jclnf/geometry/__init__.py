"""Rotations, the shape model, similarity warps and small linear systems."""

from jclnf.geometry._linalg import solve
from jclnf.geometry._pdm import (
    MODE_LIMIT,
    PDM,
    Pose,
    clamp,
    displaced,
    jacobian,
    pose_from_box,
    project,
    rigid_jacobian,
    shape3d,
    update,
)
from jclnf.geometry._rotation import atan2, euler_to_matrix, matrix_to_euler, retract, small_turn
from jclnf.geometry._warp import align, apply, invert, sample_areas, sample_square

__all__ = [
    "MODE_LIMIT",
    "PDM",
    "Pose",
    "align",
    "apply",
    "atan2",
    "clamp",
    "displaced",
    "euler_to_matrix",
    "invert",
    "jacobian",
    "matrix_to_euler",
    "pose_from_box",
    "project",
    "retract",
    "rigid_jacobian",
    "sample_areas",
    "sample_square",
    "shape3d",
    "small_turn",
    "solve",
    "update",
]
