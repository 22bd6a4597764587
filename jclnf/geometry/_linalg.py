"""Small linear systems, as a fit solves them at each iteration."""

import jax.scipy.linalg as jsp
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float


def solve(normal: Float[Array, "d d"], right: Float[Array, "d *k"]) -> Float[Array, "d *k"]:
    """Solve a symmetric positive definite system by its Cholesky factor.

    On a CPU the systems of a batch are solved one after the other. jaxlib would hand them to the
    thread pool that its caller runs on, and wait there: devices that factorise at the same time
    wait for each other for ever.
    """

    def in_turn(normal: Array, right: Array) -> Array:
        return lax.custom_linear_solve(
            lambda x: normal @ x,
            right,
            lambda _, b: _cholesky_solve_in_turn(normal, b),
            symmetric=True,
        )

    return lax.platform_dependent(normal, right, cpu=in_turn, default=_cholesky_solve)


def _cholesky_solve(
    normal: Float[Array, "d d"], right: Float[Array, "d *k"]
) -> Float[Array, "d *k"]:
    return jsp.cho_solve(jsp.cho_factor(normal, lower=True), right)


_cholesky_solve_in_turn = sequential_vmap(_cholesky_solve)
