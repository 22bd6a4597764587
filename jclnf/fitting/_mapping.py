"""How a batch of faces runs: one after the other where caches decide, all at once elsewhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jclnf.fitting._model import Model


def one_by_one() -> bool:
    """Whether faces run one after the other on the default device."""
    return jax.default_backend() == "cpu"


IN_ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}
"""XLA's options for the program of a fit that is `in_one_thread`."""


def in_one_thread(model: Model) -> bool:
    """Whether a fit of one face is fastest in one thread: on a CPU, unless there are convolutions.
    XLA's threads pass small products to and fro for longer than they take."""
    return one_by_one() and model.experts.together == 1


def map_faces(
    function: Callable[[Any], Any],
    batch: Any,
    *,
    side_by_side: bool = False,
    count: Int[Array, ""] | None = None,
) -> Any:
    """`jax.vmap(function)(batch)` in the form that is fastest on the default device.

    On a CPU one face after the other (`lax.map`) is several times faster: a face's patches stay
    in the cache, and its view's experts are indexed instead of gathered. Accelerators get `vmap`.
    So does a CPU if `side_by_side`, for gradients of convolutions: in a loop they take ten times
    as long.

    Args:
        function: of one face.
        batch: a tree of arrays with a leading axis.
        side_by_side: see above.
        count: how many of the batch are wanted; results of the others may be anything. Where faces
            run one after the other, they take no time. There are no derivatives then.
    """
    if not one_by_one() or side_by_side:
        return jax.vmap(function)(batch)
    if count is None:
        return lax.map(function, batch)
    like = jax.eval_shape(function, jax.tree.map(lambda array: array[0], batch))
    size = len(jax.tree.leaves(batch)[0])

    def add(i: Int[Array, ""], results: Any) -> Any:
        one = function(jax.tree.map(lambda array: array[i], batch))
        return jax.tree.map(lambda all, new: all.at[i].set(new), results, one)

    nothing = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), like)
    return lax.fori_loop(0, count, add, nothing)
