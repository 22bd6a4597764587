"""Derivatives of where a fit stands still, by the implicit function theorem.

A pass that has converged ends where the right side of its normal equations vanishes, `g(x, a) = 0`,
whatever way it came. So the derivative of where it ends with respect to anything `a` that acts on
the maps, the prior or the weights is that of the solution, `dx/da = -(dg/dx)^-1 dg/da`, with `x` in
the coordinates of `jclnf.geometry.jacobian`. A mode at its limit stays there: its equation is
`p = limit`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jclnf.geometry import MODE_LIMIT, PDM, Pose, displaced, inverse, product

Residual = Callable[[PDM, Pose, Float[Array, " m"]], Float[Array, " 6+m"]]
"""A function that vanishes where the fit stands still."""


def fixed_point(
    pdm: PDM, residual: Residual, pose: Pose, shape: Float[Array, " m"]
) -> tuple[Pose, Float[Array, " m"]]:
    """Pose and shape unchanged, with the derivatives of the fixed point that they stand at.

    Forwards as well as backwards: the value is that of one Newton step which does not move.

    Args:
        pdm: the shape model.
        residual: `g`; derivatives are with respect to whatever it closes over, and to `pdm`.
        pose, shape: where the fit ended; their own derivatives are not used.

    Returns:
        The same pose and shape. Where the equations have no unique solution (nothing seen in any
        window, say), their derivatives are 0.
    """
    pose, shape = lax.stop_gradient((pose, shape))
    limit = MODE_LIMIT * jnp.sqrt(pdm.eigenvalues)
    at_limit = jnp.abs(shape) >= lax.stop_gradient(limit)
    still = jnp.zeros(6, bool)
    held = jnp.concatenate([still, at_limit])

    def equations(pdm: PDM, delta: Float[Array, " d"]) -> Float[Array, " d"]:
        moved, free = displaced(pose, shape, delta)
        beyond = free - jnp.sign(shape) * MODE_LIMIT * jnp.sqrt(pdm.eigenvalues)
        beyond = jnp.concatenate([jnp.zeros(6, beyond.dtype), beyond])
        return jnp.where(held, beyond, residual(pdm, moved, free))

    nowhere = jnp.zeros(6 + len(shape), shape.dtype)
    slope = lax.stop_gradient(jax.jacfwd(lambda delta: equations(pdm, delta))(nowhere))
    inverted = inverse(slope)
    unique = jnp.isfinite(inverted).all()
    step = product(jnp.where(unique, inverted, 0.0), equations(pdm, nowhere))
    newton = with_derivative(nowhere, -step)
    return displaced(pose, shape, newton)


def with_derivative(value: Any, like: Any) -> Any:
    """A value with the derivative of another."""
    return lax.stop_gradient(value) + (like - lax.stop_gradient(like))
