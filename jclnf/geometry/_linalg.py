"""Small dense linear systems, as a fit solves them at each iteration.

On a CPU the systems of a batch are solved one after the other. jaxlib would hand a batch to the
thread pool that its caller runs on, and wait there: programs that factorise at the same time (on
several devices, or side by side in one program) wait for each other for ever. `inverses`, for
thousands of systems at once, does without jaxlib's factorisations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsp
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata
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
        lambda x: product(matrix, x), right, lambda _, b: _cholesky_solve(matrix, b), symmetric=True
    )


def inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The inverse of any regular matrix, by its LU factors; not finite for others. It has no
    derivative."""
    return _inverse(matrix)


BLOCK = 6
"""Side of the blocks that `inverses` eliminates at a time."""


@jax.custom_jvp
def inverses(matrices: Float[Array, "*n d d"]) -> Float[Array, "*n d d"]:
    """Inverses of many small positive definite matrices, all at once by Gauss-Jordan elimination.

    Blocks of rows and columns are eliminated together, so that nearly all of it is products of
    matrices.
    """
    size = matrices.shape[-1]
    if size <= BLOCK:
        return _eliminated(matrices, 1, lambda pivot: 1 / pivot)
    padding = -size % BLOCK
    whole = jnp.pad(matrices, [(0, 0)] * (matrices.ndim - 2) + [(0, padding)] * 2)
    filling = np.diag(np.arange(size + padding) >= size)
    whole = _eliminated(jnp.where(filling, 1.0, whole), BLOCK, inverses)
    return whole[..., :size, :size]


def _eliminated(
    matrices: Float[Array, "*n d d"], side: int, invert: Callable[[Array], Array]
) -> Float[Array, "*n d d"]:
    """The inverses, `side` rows and columns at a time; `invert` does so for blocks of that side."""

    def eliminate(i: Int[Array, ""] | int, a: Float[Array, "*n d d"]) -> Float[Array, "*n d d"]:
        at = i * side
        rows = lax.dynamic_slice_in_dim(a, at, side, -2)
        columns = lax.dynamic_slice_in_dim(a, at, side, -1)
        pivot = invert(lax.dynamic_slice_in_dim(rows, at, side, -1))
        rows = _product(pivot, rows)
        a = a - _product(columns, rows)
        a = lax.dynamic_update_slice_in_dim(a, -_product(columns, pivot), at, -1)
        rows = lax.dynamic_update_slice_in_dim(rows, pivot, at, -1)
        return lax.dynamic_update_slice_in_dim(a, rows, at, -2)

    return lax.fori_loop(0, matrices.shape[-1] // side, eliminate, matrices)


def _product(a: Float[Array, "*n i j"], b: Float[Array, "*n j k"]) -> Float[Array, "*n i k"]:
    return a * b if a.shape[-1] == 1 else product(a, b)


@inverses.defjvp
def _inverses_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverted = inverses(primals[0])
    return inverted, -product(product(inverted, tangents[0]), inverted)


def bilinear(
    products: Callable[..., Array], transposes: Callable[..., tuple[Any, Any]] | None = None
) -> Callable[..., Callable[..., Array]]:
    """For a function of two arrays (and what selects among them) that is linear in each: its
    derivatives are `products`, the same as products of matrices, whose transposes are such as well.

    Args:
        products: see above.
        transposes: of two arrays, two functions: of a cotangent of the result, which give those of
            the first array and of the second; those of `products` if not given.
    """

    def decorate(function: Callable[..., Array]) -> Callable[..., Array]:
        differentiable = jax.custom_jvp(function)

        def along(which: int, a: Array, b: Array, rest: Any, tangent: Array, back: Any) -> Array:
            def of(form: Callable[..., Array]) -> Callable[[Array], Array]:
                return lambda x: form(*((x, b) if which == 0 else (a, x)), *rest)

            if back is None:
                return of(products)(tangent)
            return with_transpose(of(differentiable), of(products), back, tangent)

        def jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
            a, b, *rest = primals
            da, db, *_ = tangents
            value = differentiable(*primals)
            change = jnp.zeros_like(value)
            in_turn = (None, None) if transposes is None else transposes(a, b)
            for which, tangent in enumerate((da, db)):
                if not isinstance(tangent, SymbolicZero):
                    change += along(which, a, b, rest, tangent, in_turn[which])
            return value, change

        differentiable.defjvp(jvp, symbolic_zeros=True)
        return differentiable

    return decorate


def with_transpose(
    function: Callable[[Array], Array],
    same: Callable[[Array], Array],
    transpose: Callable[[Array], Array],
    x: Array,
) -> Array:
    """`function(x)`, which is linear, with a transpose of its own: that which JAX finds, of sums of
    shifted arrays, would be sums of padded ones.

    Args:
        function: what is computed.
        same: the same, for JAX to differentiate it once more.
        transpose: its transpose.
        x: where.
    """
    like = jax.eval_shape(function, x)

    def joined(x: Array, y: Array) -> Array:
        return jnp.concatenate([x.reshape(-1), y.reshape(-1)])

    def apart(both: Array) -> tuple[Array, Array]:
        return both[: x.size].reshape(x.shape), both[x.size :].reshape(like.shape)

    def after(both: Array) -> Array:
        x, y = apart(both)
        return joined(x, y + function(x))

    def transposed(both: Array) -> Array:
        x, y = apart(both)
        return joined(x + transpose(y), y)

    def before(both: Array) -> Array:
        x, y = apart(both)
        return joined(x, y - same(x))

    # As the inverse of a square matrix: of (x, y), to which (x, y - function(x)) belongs.
    both = joined(x, jnp.zeros_like(like))
    solved: Array = lax.custom_linear_solve(
        before, both, lambda _, both: after(both), lambda _, both: transposed(both)
    )
    return apart(solved)[1]


@jax.custom_jvp
def fence(array: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The array itself, computed once for all that is done with it.

    On CPUs: each long loop compiles best by itself, and XLA fuses nothing across a call that it
    does not inline. Barriers (`lax.optimization_barrier`) are gone by the time that it fuses loops.
    A program that is exported for several platforms has no fences.
    """

    def called(array: Array) -> Array:
        with set_xla_metadata(inlineable="false"):
            same: Array = _same(array)
            return same

    same: Array = lax.platform_dependent(array, cpu=called, default=lambda array: array)
    return same


@jax.jit
def _same(array: Array) -> Array:
    return array


@fence.defjvp
def _fence_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return fence(*primals), fence(*tangents)


def product(a: Array, b: Array) -> Array:
    """`a @ b` in full precision. Accelerators otherwise round the numbers of float32 products to
    10 bits (TF32) or 7 (bfloat16): a landmark 100 mm from its head's middle moves by 0.05 mm."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


precise = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
"""`jnp.einsum` in full precision, see `product`."""


def small_product(a: Float[Array, "i j"], b: Float[Array, "j k"]) -> Float[Array, "i k"]:
    """`a @ b` of a few rows and columns, as sums that XLA fuses with what surrounds them: on a CPU
    calling a product of matrices takes longer than computing it."""
    return jnp.sum(a[:, :, None] * b[None], axis=1)


def pairwise_sum(arrays: list[Array]) -> Array:
    """Their sum, added pairwise."""
    while len(arrays) > 1:
        pairs = zip(arrays[::2], arrays[1::2], strict=False)
        arrays = [a + b for a, b in pairs] + arrays[len(arrays) & ~1 :]
    return arrays[0]


def norm(array: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """Euclidean norm over so many last axes, with derivative 0 at 0."""
    squared = jnp.sum(array**2, axis=tuple(range(-axes, 0)))
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
