"""Patches of areas around landmarks, as columns of matrices."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def patch_columns(areas: Float[Array, "n a a"], window: int) -> Float[Array, "n p positions"]:
    """The patches of each area as columns, both row by row."""
    n, side, _ = areas.shape
    support = side - window + 1
    rows = jnp.stack([areas[:, dy : dy + window] for dy in range(support)], axis=1)
    patches = jnp.stack([rows[..., dx : dx + window] for dx in range(support)], axis=2)
    # Without the barrier XLA gathers the patches again wherever they are used.
    return lax.optimization_barrier(patches.reshape(n, support**2, window**2))


def patch_contrast(
    areas: Float[Array, "n a a"], window: int
) -> tuple[Float[Array, "n p positions"], Float[Array, "n positions"]]:
    """The patches of each area as columns, less their mean, and one over the norm of each, 0 where
    it is flat, so that no more than rounding is left of it."""
    areas = areas - areas.mean(axis=(1, 2), keepdims=True)
    patches = patch_columns(areas, window)
    mean = patches.mean(axis=1)
    patches = patches - mean[:, None]
    support = areas.shape[-1] - window + 1
    return patches, inverse_root(jnp.sum(patches**2, axis=1), mean, support)


def inverse_root(energy: Array, mean: Array, support: int) -> Array:
    """One over the root of the patches' energy, 0 where that is no more than rounding."""
    rounding = support**2 * (8 * jnp.finfo(mean.dtype).eps * mean) ** 2
    return lax.rsqrt(jnp.where(energy > rounding, energy, jnp.inf))
