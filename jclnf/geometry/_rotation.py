"""Head rotation: Euler angles, matrices, and the update of a rotation by a small turn.

Convention: `R = Rx(rx) Ry(ry) Rz(rz)` maps the model's axes to the camera's (x right, y down,
z away from the viewer); angles in radians; `rx` pitch, `ry` yaw, `rz` roll.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jclnf.geometry._linalg import small_product


def euler_to_matrix(euler: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotation matrix `Rx(rx) Ry(ry) Rz(rz)` of three Euler angles in radians."""
    c1, c2, c3 = jnp.cos(euler)
    s1, s2, s3 = jnp.sin(euler)
    return jnp.array(
        [
            [c2 * c3, -c2 * s3, s2],
            [c1 * s3 + c3 * s1 * s2, c1 * c3 - s1 * s2 * s3, -c2 * s1],
            [s1 * s3 - c1 * c3 * s2, c3 * s1 + c1 * s2 * s3, c1 * c2],
        ]
    )


def matrix_to_euler(matrix: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """Euler angles (radians) of a rotation matrix; yaw lies in [-pi/2, pi/2].

    Yaw is taken as `atan2(R02, |(R00, R01)|)`, not `asin(R02)`: near a profile view the arcsine
    loses half of the digits, and its derivative is infinite. At exactly +-pi/2 only the sum or
    difference of pitch and roll is determined; the derivative there is finite but arbitrary.
    """
    cos_yaw_squared = matrix[0, 0] ** 2 + matrix[0, 1] ** 2
    upright = cos_yaw_squared > 0
    cos_yaw = jnp.where(upright, jnp.sqrt(jnp.where(upright, cos_yaw_squared, 1.0)), 0.0)
    return jnp.array(
        [
            atan2(-matrix[1, 2], matrix[2, 2]),
            atan2(matrix[0, 2], cos_yaw),
            atan2(-matrix[0, 1], matrix[0, 0]),
        ]
    )


def atan2(y: Float[Array, ""], x: Float[Array, ""]) -> Float[Array, ""]:
    """`atan2` whose derivative at the origin is zero instead of NaN."""
    defined = (x != 0) | (y != 0)
    return jnp.where(
        defined, jnp.arctan2(jnp.where(defined, y, 0.0), jnp.where(defined, x, 1.0)), 0.0
    )


def skew(vector: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """The cross-product matrix `[v]x`, with `[v]x u = v x u`."""
    x, y, z = vector
    zero = jnp.zeros_like(x)
    return jnp.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]])


def retract(matrix: Float[Array, "3 3"], turn: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Turn a rotation by a small axis-angle `turn` (radians), applied on the right.

    The result is `R Q`, with `Q` the rotation nearest to `I + [w]x` (its polar factor), which CLM
    fitters commonly get from a singular value decomposition. In closed form `Q` is the rotation
    about `w` by the angle `atan |w|`:

        Q = I + c [w]x + (1 - c) / |w|^2 [w]x [w]x,    c = 1 / sqrt(1 + |w|^2),

    where `(1 - c) / |w|^2 = c^2 / (1 + c)` is smooth at `w = 0`.
    """
    return small_product(matrix, small_turn(turn))


def small_turn(turn: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """The rotation `Q` of `retract`."""
    c = lax.rsqrt(1.0 + jnp.sum(turn**2))
    # [w]x [w]x = w w^T - |w|^2 I
    squared = turn[:, None] * turn[None]
    return c * (jnp.eye(3, dtype=turn.dtype) + skew(turn)) + c**2 / (1.0 + c) * squared
