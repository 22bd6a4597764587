"""Derivatives of where a fit stands still, by the implicit function theorem.

A pass that has converged ends where the right side of its normal equations vanishes, `g(x, a) = 0`,
whatever way it came. So the derivative of where it ends, by anything `a` that acts on the maps, the
prior or the weights, is that of the solution, `dx/da = -(dg/dx)^-1 dg/da`, with `x` in the
coordinates of `jclnf.geometry.jacobian`. A mode at its limit stays there: its equation is `p =
limit`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float

from jclnf.geometry import MODE_LIMIT, PDM, Pose, displaced

Balance = Callable[[PDM, Pose, Float[Array, " m"]], Float[Array, " 6+m"]]
"""What vanishes where the fit stands still."""


def fixed_point(
    pdm: PDM, balance: Balance, pose: Pose, shape: Float[Array, " m"]
) -> tuple[Pose, Float[Array, " m"]]:
    """Pose and shape unchanged, with the derivatives of the fixed point that they stand at.

    Forwards as well as backwards: the value is that of one Newton step which does not move.

    Args:
        pdm: the shape model.
        balance: `g`; derivatives are taken by whatever it closes over, and by the shape model.
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
        return jnp.where(held, beyond, balance(pdm, moved, free))

    nowhere = jnp.zeros(6 + len(shape), shape.dtype)
    slope = lax.stop_gradient(jax.jacfwd(lambda delta: equations(pdm, delta))(nowhere))
    inverse = _inverse(slope)
    unique = jnp.isfinite(inverse).all()
    newton = with_derivative(nowhere, -jnp.where(unique, inverse, 0.0) @ equations(pdm, nowhere))
    return displaced(pose, shape, newton)


def with_derivative(value: Any, like: Any) -> Any:
    """A value with the derivative of another."""
    return lax.stop_gradient(value) + (like - lax.stop_gradient(like))


def _inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The inverse of a matrix; on a CPU those of a batch one after the other, see `rlms.solve`."""
    return lax.platform_dependent(matrix, cpu=_inverse_in_turn, default=jnp.linalg.inv)


_inverse_in_turn = sequential_vmap(jnp.linalg.inv)
