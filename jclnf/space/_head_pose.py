"""Where the head is in space: its position and rotation in the camera's frame, and its landmarks.

Frames and signs: the camera's frame is that of `space/_camera.py`, and the head's axes are those of
the shape model: x to the viewer's right, y down, z away from the viewer. So of a head that looks
straight at the camera, all angles are zero. Positive pitch `rx` turns the face down, positive yaw
`ry` turns it to its own right, which is the left of the image, positive roll `rz` tilts it
clockwise as the image shows it. `experiments/openface_csv/frames.png` shows them.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jclnf.errors import ParamsError
from jclnf.geometry import Pose, euler_to_matrix, matrix_to_euler, product, small_turn, solve
from jclnf.runtime import check_process
from jclnf.space._camera import Camera

ITERATIONS = 15
"""Steps of the least squares. The start is near and the error smooth: five are mostly enough."""
DAMPING = 1e-6
"""Added to the normal matrix, in parts of its diagonal: it is regular but for degenerate shapes."""


class HeadPose(eqx.Module):
    """Position and rotation of a head in the camera's frame."""

    translation: Float[Array, "3"]
    """Of the shape model's origin, millimetres."""
    rotation: Float[Array, "3"]
    """Euler angles (pitch, yaw, roll) of `Rx Ry Rz`, radians."""

    def towards_camera(self) -> "HeadPose":
        """The rotation with respect to the ray from the camera to the head.

        A head beside the optical axis that faces the camera has angles of zero then. The rotation
        is turned by the direction to the head,
        `Rx(atan2(Ty, |(Tx, Tz)|)) Ry(-atan2(Tx, |(Ty, Tz)|))`.
        """
        x, y, z = self.translation
        back = euler_to_matrix(
            jnp.stack(
                [
                    jnp.arctan2(y, jnp.hypot(x, z)),
                    -jnp.arctan2(x, jnp.hypot(y, z)),
                    jnp.zeros_like(x),
                ]
            )
        )
        turned = matrix_to_euler(product(back, euler_to_matrix(self.rotation)))
        return HeadPose(self.translation, turned)


def head_pose(result: Any, camera: Camera) -> HeadPose:
    """The pose in space of a fitted face: perspective from n points (PnP).

    The rotation and translation that bring the 3D shape nearest to the landmarks, by the sum of
    squared distances in the image: Gauss-Newton from the fit's weak-perspective pose. Pure: `jit`,
    `vmap` and `grad` apply to it.

    Args:
        result: a `FitResult`, or anything with `landmarks`, `landmarks3d` and `pose`, in the pixels
            of the camera's image.
        camera: the camera.

    Raises:
        ParamsError: the result is that of several faces.
    """
    check_one_face(result)
    points = product(result.landmarks3d, result.pose.matrix)
    return pose_of_points(points, result.landmarks, result.pose, camera)


def pose_of_points(
    points: Float[Array, "n 3"], landmarks: Float[Array, "n 2"], pose: Pose, camera: Camera
) -> HeadPose:
    """As `head_pose`, of given 3D points.

    Args:
        points: in the model's axes, millimetres.
        landmarks: where they are seen, pixels.
        pose: their weak-perspective pose, to start from.
        camera: the camera.
    """
    depth = camera.fx / pose.scale
    x, y = pose.translation
    start = jnp.stack(
        [(x - camera.cx) * depth / camera.fx, (y - camera.cy) * depth / camera.fy, depth]
    )

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        matrix, translation = carry
        turned = product(points, matrix.T)
        seen = turned + translation[None]
        inverse = 1 / seen[:, 2]
        residual = landmarks - camera.project(seen)
        zero = jnp.zeros_like(inverse)
        by_point = jnp.stack(
            [
                jnp.stack([camera.fx * inverse, zero, -camera.fx * seen[:, 0] * inverse**2], -1),
                jnp.stack([zero, camera.fy * inverse, -camera.fy * seen[:, 1] * inverse**2], -1),
            ],
            axis=1,
        )
        # The turn w acts on the left, exp([w]x) R; translations are in depths, so that all six
        # columns are of one size.
        x, y, z = turned.T
        by_turn = jnp.stack(
            [
                jnp.stack([zero, z, -y], -1),
                jnp.stack([-z, zero, x], -1),
                jnp.stack([y, -x, zero], -1),
            ],
            axis=1,
        )
        by_turn = product(by_point, by_turn)
        columns = jnp.concatenate([by_turn, depth * by_point], axis=-1).reshape(-1, 6)
        normal = product(columns.T, columns)
        normal = normal + DAMPING * jnp.diag(jnp.diag(normal))
        delta = solve(normal, product(columns.T, residual.reshape(-1)))
        return (product(small_turn(delta[:3]), matrix), translation + depth * delta[3:]), None

    (matrix, translation), _ = lax.scan(step, (pose.matrix, start), None, length=ITERATIONS)
    return HeadPose(translation, matrix_to_euler(matrix))


def landmarks_in_space(result: Any, camera: Camera) -> Float[Array, "n 3"]:
    """The landmarks in the camera's frame, millimetres, as OpenFace gives them.

    Each lies on the ray through its pixel, at the depth that the weak-perspective fit gives it:
    `Z = fx / s + (R X)_z`. So they are not exactly the shape at `head_pose`, which minimises the
    distances in the image.

    Args:
        result: a `FitResult` or `PartResult`, in the pixels of the camera's image.
        camera: the camera.

    Raises:
        ParamsError: the result is that of several faces.
    """
    check_one_face(result)
    z = camera.fx / result.pose.scale + result.landmarks3d[:, 2]
    x, y = result.landmarks.T
    return jnp.stack([z * (x - camera.cx) / camera.fx, z * (y - camera.cy) / camera.fy, z], axis=-1)


def check_one_face(result: Any) -> None:
    """Raise ParamsError if a result is that of several faces."""
    check_process()
    if jnp.ndim(result.landmarks) != 2:
        raise ParamsError(
            f"the result holds landmarks of shape {jnp.shape(result.landmarks)}, those of several "
            "faces: jax.vmap the function, or call it for each"
        )
