"""Where a person looks: the direction of each eye in the camera's frame.

Frames and signs: directions are unit vectors in the frame of `space/_camera.py`, so that looking at
the camera from straight ahead is `(0, 0, -1)`; x positive looks to the right of the image, y
positive down. Source: Wood and others, "Rendering of eyes for eye-shape registration and gaze
estimation" (ICCV 2015), section 5; Baltrusaitis and others, "OpenFace 2.0" (FG 2018), section
III-C.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jclnf.errors import ParamsError
from jclnf.geometry import atan2, euler_to_matrix, product
from jclnf.space._camera import Camera
from jclnf.space._head_pose import HeadPose, check_one_face, landmarks_in_space

EYES = ("left_eye_28", "right_eye_28")
"""The parts of a fit that gaze is taken from: the eye at the left of the image, the one at the
right. OpenFace names them so."""
CORNERS = ((36, 39), (42, 45))
"""The landmarks at the corners of either eye."""
IRIS = 8
"""The first landmarks of an eye part lie on the border of the iris."""
RADIUS = 12.0
"""Of an eyeball, millimetres."""
CENTRE = (0.0, -3.5, 7.0)
"""Of an eyeball, from the middle between the corners of the eye, in the head's axes, mm."""


class Gaze(eqx.Module):
    """The gaze of both eyes, the one at the left of the image first."""

    directions: Float[Array, "2 3"]
    """Unit vectors, in the camera's frame."""
    angles: Float[Array, "2"]
    """Of the mean of both directions, radians: to the right and down, as the camera sees it."""
    landmarks: Float[Array, "2 28 2"]
    """The eyes' landmarks, pixels."""
    landmarks3d: Float[Array, "2 28 3"]
    """The same in the camera's frame, millimetres."""


def has_gaze(result: Any) -> bool:
    """Whether a fit has the parts that gaze is taken from."""
    return all(name in result.parts for name in EYES)


def gaze(result: Any, camera: Camera, head: HeadPose) -> Gaze:
    """The gaze of a fitted face whose eyes were fitted as parts.

    The ray from the camera through the pupil (the mean of the iris's landmarks) meets the eyeball,
    a sphere whose centre follows from the corners of the eye and the head's rotation. Gaze goes
    from that centre to where they meet, or to where the ray passes nearest.

    Args:
        result: a `FitResult` for which `has_gaze` is true, in the pixels of the camera's image.
        camera: the camera.
        head: the face's pose in space, see `jclnf.space.head_pose`.

    Raises:
        ParamsError: the result has no such parts, or is that of several faces.
    """
    check_one_face(result)
    if not has_gaze(result):
        raise ParamsError(
            f"gaze needs the parts {' and '.join(EYES)}, which this fit has not: load one of "
            "OpenFace's models with its parts, load_openface(path, parts=True), and fit with "
            "parts=True in the settings"
        )
    matrix = euler_to_matrix(head.rotation)
    face = landmarks_in_space(result, camera)
    parts = [result.parts[name] for name in EYES]
    eyes = jnp.stack([landmarks_in_space(part, camera) for part in parts])
    directions = jnp.stack(
        [
            _direction(eye, face[jnp.array(corners)], matrix)
            for eye, corners in zip(eyes, CORNERS, strict=True)
        ]
    )
    x, y, z = directions.mean(0)
    return Gaze(
        directions=directions,
        angles=jnp.stack([atan2(x, -z), atan2(y, -z)]),
        landmarks=jnp.stack([part.landmarks for part in parts]),
        landmarks3d=eyes,
    )


def _direction(
    eye: Float[Array, "28 3"], corners: Float[Array, "2 3"], head: Float[Array, "3 3"]
) -> Float[Array, "3"]:
    centre = corners.mean(0) + product(head, jnp.asarray(CENTRE, head.dtype))
    pupil = eye[:IRIS].mean(0)
    ray = pupil / jnp.linalg.norm(pupil)
    along = jnp.sum(ray * centre)
    inside = RADIUS**2 - (jnp.sum(centre**2) - along**2)
    meets = inside > 0
    before = jnp.where(meets, jnp.sqrt(jnp.where(meets, inside, 1.0)), 0.0)
    gaze = (along - before) * ray - centre
    return gaze / jnp.linalg.norm(gaze)
