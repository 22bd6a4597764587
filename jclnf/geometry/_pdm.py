"""The point distribution model (PDM): a linear 3D face shape under weak perspective.

Shape `X(p) = mean + V p` in millimetres (x right, y down, z away from the viewer); image points
`x_i = s R[:2] X_i + t` in pixels. Source: Saragih, Lucey, Cohn, "Deformable model fitting by
regularized landmark mean-shift" (IJCV 2011), section 2.1.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jclnf.errors import ModelFileError, check_fields, is_concrete
from jclnf.geometry._linalg import precise, product, small_product
from jclnf.geometry._rotation import euler_to_matrix, matrix_to_euler, retract

MODE_LIMIT = 3.0
"""Each shape parameter is kept within this many standard deviations of the mean shape."""


class PDM(eqx.Module):
    """A shape model of `n` landmarks and `m` modes."""

    mean: Float[Array, "n 3"]
    """Mean shape, millimetres."""
    components: Float[Array, "n 3 m"]
    """Modes of variation: displacement in millimetres per unit of each parameter."""
    eigenvalues: Float[Array, " m"]
    """Variance of each parameter over the training faces."""

    def __check_init__(self) -> None:
        check_fields(self, "shape model")
        if is_concrete(self.eigenvalues) and not (np.asarray(self.eigenvalues) > 0).all():
            raise ModelFileError("shape model", "eigenvalues holds variances that are not positive")

    @property
    def n_landmarks(self) -> int:
        """Number of landmarks."""
        return self.mean.shape[0]

    @property
    def n_modes(self) -> int:
        """Number of modes."""
        return self.components.shape[2]

    def mean_shape(self) -> Float[Array, " m"]:
        """The parameters of the mean shape: zeros."""
        return jnp.zeros_like(self.eigenvalues)


class Pose(eqx.Module):
    """Weak-perspective pose. The rotation is kept as a matrix: Euler angles are singular."""

    scale: Float[Array, ""]
    """Image pixels per millimetre."""
    matrix: Float[Array, "3 3"]
    """Rotation from the model's axes to the camera's."""
    translation: Float[Array, "2"]
    """Image position of the model's origin, (x, y) in pixels."""

    @property
    def rotation(self) -> Float[Array, "3"]:
        """Euler angles (pitch, yaw, roll) of `Rx Ry Rz`, radians."""
        return matrix_to_euler(jnp.asarray(self.matrix))

    @staticmethod
    def from_euler(
        scale: Float[Array, ""], rotation: Float[Array, "3"], translation: Float[Array, "2"]
    ) -> "Pose":
        """Pose of a scale (px/mm), Euler angles (radians) and a translation (px)."""
        return Pose(scale, euler_to_matrix(rotation), translation)


def shape3d(pdm: PDM, shape: Float[Array, " m"]) -> Float[Array, "n 3"]:
    """The 3D shape `mean + V p` in millimetres, in the model's own frame."""
    return pdm.mean + product(pdm.components, shape)


def turned3d(pdm: PDM, pose: Pose, shape: Float[Array, " m"]) -> Float[Array, "n 3"]:
    """The 3D shape in millimetres along the camera's axes, from the model's origin."""
    return product(shape3d(pdm, shape), pose.matrix.T)


def project(pdm: PDM, pose: Pose, shape: Float[Array, " m"]) -> Float[Array, "n 2"]:
    """Image positions of the landmarks, `s R[:2] X + t`, in pixels."""
    axes = pose.scale * pose.matrix[:2]
    return small_product(shape3d(pdm, shape), axes.T) + pose.translation[None]


def rigid_jacobian(pdm: PDM, pose: Pose, shape: Float[Array, " m"]) -> Float[Array, "n 2 6"]:
    """Jacobian of the projection with respect to scale, a small turn of the head, translation.

    The turn `w` (radians) acts on the right, `R exp([w]x)`, so that its columns are
    `s R[:2] (e_k x X)`; they are linear in the shape and do not involve Euler angles.
    """
    points = shape3d(pdm, shape)
    axes = pose.matrix[:2]
    turned = jnp.cross(jnp.eye(3, dtype=points.dtype)[None], points[:, None])
    translation = jnp.broadcast_to(jnp.eye(2, dtype=points.dtype), (*points.shape[:1], 2, 2))
    of_scale = product(points, axes.T)[..., None]
    of_turn = pose.scale * precise("ac,nkc->nak", axes, turned)
    return jnp.concatenate([of_scale, of_turn, translation], axis=-1)


def jacobian(pdm: PDM, pose: Pose, shape: Float[Array, " m"]) -> Float[Array, "n 2 6+m"]:
    """Jacobian of the projection with respect to the 6 pose and the `m` shape parameters."""
    modes = pose.scale * precise("ac,ncm->nam", pose.matrix[:2], pdm.components)
    return jnp.concatenate([rigid_jacobian(pdm, pose, shape), modes], axis=-1)


def clamp(pdm: PDM, shape: Float[Array, " m"]) -> Float[Array, " m"]:
    """Limit each shape parameter to `MODE_LIMIT` standard deviations."""
    limit = MODE_LIMIT * jnp.sqrt(pdm.eigenvalues)
    return jnp.clip(shape, -limit, limit)


def update(
    pdm: PDM, pose: Pose, shape: Float[Array, " m"], delta: Float[Array, " 6+m"]
) -> tuple[Pose, Float[Array, " m"]]:
    """Apply an update in the coordinates of `jacobian`; the shape is clamped, the pose is not."""
    after, free = displaced(pose, shape, delta)
    return after, clamp(pdm, free)


def displaced(
    pose: Pose, shape: Float[Array, " m"], delta: Float[Array, " 6+m"]
) -> tuple[Pose, Float[Array, " m"]]:
    """Pose and shape after a step in the coordinates of `jacobian`, nothing clamped."""
    return moved(pose, delta), shape + delta[6:]


def moved(pose: Pose, delta: Float[Array, " d"]) -> Pose:
    """A pose after a step in the coordinates of `rigid_jacobian`, or of `jacobian`."""
    return Pose(
        scale=pose.scale + delta[0],
        matrix=retract(pose.matrix, delta[1:4]),
        translation=pose.translation + delta[4:6],
    )


def pose_from_box(pdm: PDM, box: Float[Array, "4"], rotation: Float[Array, "3"]) -> Pose:
    """The pose in which the mean shape, turned by `rotation`, fills the box.

    Args:
        pdm: the shape model.
        box: (x, y, w, h) in pixels, tight around the face outline (eyebrows to chin).
        rotation: Euler angles in radians.

    The scale is the mean of the width's and the height's; the centre of the turned shape's extent
    is put at the centre of the box.
    """
    matrix = euler_to_matrix(rotation)
    points = product(pdm.mean, matrix[:2].T)
    low, high = points.min(0), points.max(0)
    scale = jnp.mean(box[2:] / (high - low))
    translation = box[:2] + box[2:] / 2 - scale * (low + high) / 2
    return Pose(scale, matrix, translation)
