"""Small convolutional networks as pure functions: their shapes, and one walk over their layers.

A network is a function of an image and of `layer(name, x, stride)`, which applies the convolution
of that name. So training (which normalises over the batch) and a fit (whose weights have the
normalisation multiplied in) share one definition. Arrays are `(b, h, w, channels)`.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jclnf.geometry import pairwise_sum, precise

Layer = Callable[[str, Array, int], Array]
"""Applies the convolution of a name to `(b, h, w, c)` with a stride."""
Shapes = Mapping[str, tuple[int, int, int]]
"""Kernel side, input and output channels of each convolution."""

SURROUND = 0.05
"""Standard deviation, in sides of an image, of the mean that `self_quotient` divides by."""
_FLAT = 1e-9
"""Variance below which no more than rounding is left of a self-quotient image."""


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "ky kx c d"],
    stride: int = 1,
    *,
    padding: str = "SAME",
    precision: lax.Precision | None = None,
) -> Float[Array, "b y x d"]:
    """Cross-correlation; with "SAME" padding by zeros `ceil(h / stride)` rows are left, with
    "VALID" those where the kernel fits wholly."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def plain_layer(weights: Mapping[str, Array]) -> Layer:
    """Convolution and bias, the arrays `<name>.kernel` and `<name>.bias`."""

    def layer(name: str, x: Array, stride: int) -> Array:
        bias = weights[f"{name}.bias"][None, None, None]
        kernel = weights[f"{name}.kernel"]
        of_grey = x.shape[-1] == 1 and stride == 2
        return (
            _convolve_grey(x[..., 0], kernel) if of_grey else convolve(x, kernel, stride)
        ) + bias

    return layer


def _convolve_grey(
    x: Float[Array, "b h w"], kernel: Float[Array, "ky kx 1 d"]
) -> Float[Array, "b y x d"]:
    """`convolve` with a stride of 2 of one channel, as a sum that is compiled to one loop: on CPUs
    XLA's convolutions of a single channel take some eight times as long."""
    sides = [-(-side // 2) for side in x.shape[1:]]
    wanted = [2 * (n - 1) + k for n, k in zip(sides, kernel.shape[:2], strict=True)]
    missing = [max(n - side, 0) for n, side in zip(wanted, x.shape[1:], strict=True)]
    padded = jnp.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in missing)])
    return pairwise_sum(
        [
            padded[:, dy : dy + 2 * sides[0] : 2, dx : dx + 2 * sides[1] : 2, None]
            * kernel[None, None, dy, dx]
            for dy in range(kernel.shape[0])
            for dx in range(kernel.shape[1])
        ]
    )


def doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
    """Each cell repeated in 2x2."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def initial_weights(shapes: Shapes, key: Any, last: Collection[str] = ()) -> dict[str, Array]:
    """Random kernels of variance 2 / fan-in (He et al., ICCV 2015), biases 0; a hundredth of that
    deviation in the layers `last`, so that a network's first outputs are nearly 0."""
    return _initial_weights(tuple(shapes.items()), key, tuple(last))


@partial(jax.jit, static_argnums=(0, 2))
def _initial_weights(
    shapes: tuple[tuple[str, tuple[int, int, int]], ...], key: Any, last: tuple[str, ...]
) -> dict[str, Array]:
    weights = {}
    keys = jax.random.split(key, len(shapes))
    for (name, (side, inputs, outputs)), k in zip(shapes, keys, strict=True):
        deviation = (2.0 / (side * side * inputs)) ** 0.5 * (0.01 if name in last else 1.0)
        # Behind the barrier, numbers are the same as operation by operation.
        normal = lax.optimization_barrier(jax.random.normal(k, (side, side, inputs, outputs)))
        weights[f"{name}.kernel"] = deviation * normal
        weights[f"{name}.bias"] = jnp.zeros(outputs)
    return weights


def check_weights(
    weights: Mapping[str, Any], shapes: Shapes, stacked: tuple[int, ...] = ()
) -> str | None:
    """The fault in the arrays of a network, or None; `stacked` are leading axes of all."""
    for name, (side, inputs, outputs) in shapes.items():
        for array, shape in (
            (f"{name}.kernel", (side, side, inputs, outputs)),
            (f"{name}.bias", (outputs,)),
        ):
            if array not in weights:
                return f"{array} is missing"
            if jnp.shape(weights[array]) != (*stacked, *shape):
                return f"{array} has the shape {jnp.shape(weights[array])}, not {stacked + shape}"
    return None


def normalised(square: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """An image as networks see it: its `self_quotient`, less the mean, over the standard
    deviation."""
    return standardised(self_quotient(square))


def self_quotient(square: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """The self-quotient image `(I - G I) / (G I + max(mean(I) / 10, 1))`: how much lighter each
    pixel is than its surround, so that light that falls from one side is taken away.

    `G` is the Gaussian mean of deviation `SURROUND`, taken within the image; the constant keeps
    dark areas from becoming noise. Grey levels are 0-255. Source: Wang, Li, Wang, "Face recognition
    under varying lighting conditions using self quotient image" (FG 2004).
    """
    down, across = (jnp.asarray(_averages(side), square.dtype) for side in square.shape)
    # In full precision also on accelerators: a flat image must stay one.
    surround = precise("ij,jk,lk->il", down, square, across)
    return (square - surround) / (surround + jnp.maximum(0.1 * square.mean(), 1.0))


def _averages(side: int) -> np.ndarray:
    """Weights of the Gaussian mean around each of `side` pixels, within the image."""
    apart = np.arange(side) - np.arange(side)[:, None]
    weights = np.exp(-0.5 * (apart / (SURROUND * side)) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def standardised(square: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Numbers less their mean, over their standard deviation; a flat image becomes 0."""
    centred = square - square.mean()
    variance = jnp.mean(centred**2)
    textured = variance > _FLAT
    return jnp.where(textured, centred * lax.rsqrt(jnp.where(textured, variance, 1.0)), 0.0)
