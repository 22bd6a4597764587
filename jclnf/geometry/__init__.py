"""Rotations, the shape model, similarities, sampling of images and small linear systems."""

from jclnf.geometry._linalg import bilinear, inverse, inverses, pairwise_sum, small_product, solve
from jclnf.geometry._pdm import (
    MODE_LIMIT,
    PDM,
    Pose,
    clamp,
    displaced,
    jacobian,
    moved,
    pose_from_box,
    project,
    rigid_jacobian,
    shape3d,
    update,
)
from jclnf.geometry._rotation import atan2, euler_to_matrix, matrix_to_euler, retract, small_turn
from jclnf.geometry._similarity import (
    apply_similarity,
    invert_similarity,
    similarity_between,
    similarity_matrix,
    tight_box,
)
from jclnf.geometry._warp import sample_areas, sample_square

__all__ = [
    "MODE_LIMIT",
    "PDM",
    "Pose",
    "apply_similarity",
    "atan2",
    "bilinear",
    "clamp",
    "displaced",
    "euler_to_matrix",
    "inverse",
    "inverses",
    "invert_similarity",
    "jacobian",
    "matrix_to_euler",
    "moved",
    "pairwise_sum",
    "pose_from_box",
    "project",
    "retract",
    "rigid_jacobian",
    "sample_areas",
    "sample_square",
    "shape3d",
    "similarity_between",
    "similarity_matrix",
    "small_product",
    "small_turn",
    "solve",
    "tight_box",
    "update",
]
