"""The networks of MTCNN: images of one size in, or images padded to it.

Zhang, Zhang, Li, Qiao, "Joint face detection and alignment using multitask cascaded convolutional
networks" (IEEE Signal Processing Letters, 2016). Arrays are `(b, h, w, maps)`. Each layer takes and
gives, beside its array, how many rows and columns of it belong to the image; the others hold
nothing of meaning.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jclnf.experts import convolve
from jclnf.geometry import product
from jclnf.openface import LayerArrays, pooled_side
from jclnf.params import to_device

Network = tuple[LayerArrays, ...]
Step = tuple[Float[Array, "b *out"], Int[Array, "2"]]


def make_network(layers: Network) -> Network:
    """The network of layers that were read, as JAX arrays."""
    network: Network = jax.tree.map(
        lambda leaf: to_device(leaf) if isinstance(leaf, np.ndarray) else leaf, layers
    )
    return network


@eqx.filter_jit
def faces(
    network: Network, images: Float[Array, "b h w 3"], size: Int[Array, "2"]
) -> Float[Array, "b *d 5"]:
    """How likely each place is a face, and the correction of its box.

    Args:
        network: The network.
        images: Red, green, blue levels 0-255.
        size: Rows and columns of the images; the others are padding, which changes nothing.

    Returns:
        For each image, or each position in it, the probability of a face, and by which parts of
        the box's width and height left, top, right and bottom are to be moved.
    """
    x = (images - 127.5) / 128
    for layer in network:
        x, size = _LAYERS[layer.kind](x, size, **layer.fields)
    probability = jax.nn.sigmoid(x[..., 1:2] - x[..., :1])
    return jnp.concatenate([probability, x[..., 2:6]], axis=-1)


def _convolution(
    x: Float[Array, "b h w c"],
    size: Int[Array, "2"],
    *,
    kernels: Float[Array, "y x c k"],
    bias: Float[Array, " k"],
) -> Step:
    """A correlation where the kernel fits wholly, and a bias."""
    x = convolve(x, kernels, padding="VALID", precision=lax.Precision.HIGHEST)
    return x + _like(bias, x), size - jnp.array(kernels.shape[:2]) + 1


def _max_pool(
    x: Float[Array, "b h w c"],
    size: Int[Array, "2"],
    *,
    window: tuple[int, int],
    step: tuple[int, int],
) -> Step:
    """The largest value in each window; windows are cut at the border of the image."""
    x = jnp.where(_within(x, size), x, -jnp.inf)
    sides, border = [], []
    for side, of_window, of_step in zip(x.shape[1:3], window, step, strict=True):
        sides.append(pooled_side(side, of_window, of_step))
        border.append((0, max(0, (sides[-1] - 1) * of_step + of_window - side)))
    padding = ((0, 0), *border, (0, 0))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *step, 1), padding)
    x = x[:, : sides[0], : sides[1]]
    step_, window_ = np.array(step), np.array(window)
    size = (2 * (size - window_) + step_) // (2 * step_) + 1
    # Infinities would turn into NaN in what follows.
    return jnp.where(_within(x, size), x, 0.0), size


def _dense(
    x: Float[Array, "b *d"],
    size: Int[Array, "2"],
    *,
    weights: Float[Array, "i k"],
    bias: Float[Array, " k"],
) -> Step:
    """A full layer; where it takes as many numbers as there are maps, one at every position."""
    if x.shape[-1] != len(weights):
        x = x.reshape(len(x), -1)
    x = product(x, weights)
    return x + _like(bias, x), size


def _prelu(x: Float[Array, "b *d c"], size: Int[Array, "2"], *, slopes: Float[Array, " c"]) -> Step:
    """A rectifier that multiplies what is negative by the slope of its map."""
    return jnp.where(x > 0, x, _like(slopes, x) * x), size


_LAYERS: dict[str, Callable[..., Any]] = {
    "Convolution": _convolution,
    "MaxPool": _max_pool,
    "Dense": _dense,
    "PReLU": _prelu,
}
"""By the kinds of layers that `read_mtcnn` gives."""


def _like(channels: Float[Array, " c"], x: Float[Array, "*d c"]) -> Float[Array, "*ones c"]:
    """Numbers of each map, with the axes of `x`."""
    return jnp.expand_dims(channels, tuple(range(x.ndim - 1)))


def _within(x: Float[Array, "b h w c"], size: Int[Array, "2"]) -> Array:
    """Which of the rows and columns belong to the image, `(1, h, w, 1)`."""
    rows = jnp.arange(x.shape[1])[:, None] < size[0]
    columns = jnp.arange(x.shape[2])[None] < size[1]
    return (rows & columns)[None, :, :, None]
