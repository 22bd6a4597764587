"""Small dense linear systems, as a fit solves them at each iteration.

On a CPU the systems of a batch are solved one after the other. jaxlib would hand a batch to the
thread pool that its caller runs on, and wait there: programs that factorise at the same time (on
several devices, or side by side in one program) wait for each other for ever. `inverses`, for
thousands of systems at once, does without jaxlib's factorisations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsp
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int


def _in_turn(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of one system that takes those of a batch in turn on a CPU; without derivative."""
    in_turn = sequential_vmap(function)
    return lambda *system: lax.platform_dependent(*system, cpu=in_turn, default=function)


_cholesky_solve = _in_turn(lambda a, b: jsp.cho_solve(jsp.cho_factor(a, lower=True), b))
_inverse = _in_turn(jnp.linalg.inv)


def solve(matrix: Float[Array, "d d"], right: Float[Array, "d *k"]) -> Float[Array, "d *k"]:
    """`matrix^-1 right` of a symmetric positive definite matrix, by its Cholesky factor."""
    return lax.custom_linear_solve(
        lambda x: matrix @ x, right, lambda _, b: _cholesky_solve(matrix, b), symmetric=True
    )


def inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The inverse of any regular matrix, by its LU factors; not finite for others. It has no
    derivative."""
    return _inverse(matrix)


@jax.custom_jvp
def inverses(matrices: Float[Array, "*n d d"]) -> Float[Array, "*n d d"]:
    """Inverses of many small positive definite matrices, all at once by Gauss-Jordan elimination.

    On two cores 1,904 matrices of side 36 take 0.06 s, one Cholesky factor after the other 1.5 s.
    """
    size = matrices.shape[-1]

    def eliminate(k: Int[Array, ""] | int, a: Float[Array, "*n d d"]) -> Float[Array, "*n d d"]:
        here = jnp.arange(size) == k
        in_row = jnp.broadcast_to(here[:, None], a.shape)
        in_column = jnp.broadcast_to(here[None], a.shape)
        row = lax.dynamic_index_in_dim(a, k, -2, keepdims=True)
        column = lax.dynamic_index_in_dim(a, k, -1, keepdims=True)
        pivot = lax.dynamic_index_in_dim(row, k, -1, keepdims=True)
        return jnp.select(
            [in_row & in_column, in_row, in_column],
            [1 / pivot, row / pivot, -column / pivot],
            a - column * row / pivot,
        )

    return lax.fori_loop(0, size, eliminate, matrices)


@inverses.defjvp
def _inverses_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverted = inverses(primals[0])
    return inverted, -inverted @ tangents[0] @ inverted
