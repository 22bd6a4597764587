"""Weights of networks, without a program to compile for each of their layers."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def random_weights(
    shapes: Mapping[str, tuple[int, int, int]], seed: int = 0
) -> dict[str, jax.Array]:
    """As `jclnf.experts.initial_weights` has them: kernels of variance 2 / fan-in, biases 0."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (side, inputs, outputs) in shapes.items():
        kernel = rng.standard_normal((side, side, inputs, outputs))
        deviation = np.sqrt(2 / (side * side * inputs))
        weights[f"{name}.kernel"] = jnp.asarray(deviation * kernel, jnp.float32)
        weights[f"{name}.bias"] = jnp.asarray(np.zeros(outputs, np.float32))
    return weights
