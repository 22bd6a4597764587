"""The networks of MTCNN: pictures of one size in, or pictures padded to it.

Zhang, Zhang, Li, Qiao, "Joint face detection and alignment using multitask cascaded convolutional
networks" (IEEE Signal Processing Letters, 2016). Arrays are `(b, h, w, maps)`.
"""

from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jclnf.openface import LayerArrays, pooled_side


class Layer(eqx.Module):
    """A step of a network."""

    @abstractmethod
    def __call__(
        self, x: Float[Array, "b *d"], size: Int[Array, "2"]
    ) -> tuple[Float[Array, "b *e"], Int[Array, "2"]]:
        """The output, and how many of its rows and columns belong to the picture, for the same of
        the input; what the others hold is of no meaning."""


class Convolution(Layer):
    """A correlation where the kernel fits wholly, and a bias."""

    kernels: Float[Array, "y x c k"]
    bias: Float[Array, " k"]

    def __call__(
        self, x: Float[Array, "b h w c"], size: Int[Array, "2"]
    ) -> tuple[Float[Array, "b oy ox k"], Int[Array, "2"]]:
        """See `Layer`."""
        out = lax.conv_general_dilated(
            x,
            self.kernels,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return out + self.bias, size - jnp.array(self.kernels.shape[:2]) + 1


class MaxPool(Layer):
    """The largest value in each window; windows are cut at the border of the picture."""

    window: tuple[int, int] = eqx.field(static=True)
    step: tuple[int, int] = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "b h w c"], size: Int[Array, "2"]
    ) -> tuple[Float[Array, "b oy ox c"], Int[Array, "2"]]:
        """See `Layer`."""
        x = jnp.where(_within(x, size), x, -jnp.inf)
        sides = [
            pooled_side(*each) for each in zip(x.shape[1:3], self.window, self.step, strict=True)
        ]
        border = [
            (0, max(0, (out - 1) * step + window - side))
            for out, step, window, side in zip(
                sides, self.step, self.window, x.shape[1:3], strict=True
            )
        ]
        out = lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, *self.window, 1),
            (1, *self.step, 1),
            ((0, 0), *border, (0, 0)),
        )[:, : sides[0], : sides[1]]
        window, step = np.array(self.window), np.array(self.step)
        size = (2 * (size - window) + step) // (2 * step) + 1
        # Infinities would turn into NaN in what follows.
        return jnp.where(_within(out, size), out, 0.0), size


class Dense(Layer):
    """A full layer; where it takes as many numbers as there are maps, one at every position."""

    weights: Float[Array, "i k"]
    bias: Float[Array, " k"]

    def __call__(
        self, x: Float[Array, "b *d"], size: Int[Array, "2"]
    ) -> tuple[Float[Array, "b *e"], Int[Array, "2"]]:
        """See `Layer`."""
        if x.shape[-1] != len(self.weights):
            x = x.reshape(len(x), -1)
        return jnp.matmul(x, self.weights, precision=lax.Precision.HIGHEST) + self.bias, size


class PReLU(Layer):
    """A rectifier that multiplies what is negative by the slope of its map."""

    slopes: Float[Array, " c"]

    def __call__(
        self, x: Float[Array, "b *d c"], size: Int[Array, "2"]
    ) -> tuple[Float[Array, "b *d c"], Int[Array, "2"]]:
        """See `Layer`."""
        return jnp.where(x > 0, x, self.slopes * x), size


LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind for kind in (Convolution, Dense, MaxPool, PReLU)
}
"""The kinds of layers by their names."""

Network = tuple[Layer, ...]


def make_network(arrays: Sequence[LayerArrays]) -> Network:
    """The network of layers that were read."""
    return tuple(
        LAYERS[layer.kind](
            **{
                k: jnp.asarray(v) if isinstance(v, np.ndarray) else v
                for k, v in layer.fields.items()
            }
        )
        for layer in arrays
    )


@eqx.filter_jit
def faces(
    network: Network, pictures: Float[Array, "b h w 3"], size: Int[Array, "2"]
) -> Float[Array, "b *d 5"]:
    """How likely each place is a face, and the correction of its box.

    Args:
        network: The network.
        pictures: Red, green, blue levels 0-255.
        size: Rows and columns of the pictures; the others are padding, which changes nothing.

    Returns:
        For each picture, or each position in it, the probability of a face, and by which parts of
        the box's width and height left, top, right and bottom are to be moved.
    """
    x = (pictures - 127.5) / 128
    for layer in network:
        x, size = layer(x, size)
    probability = jax.nn.sigmoid(x[..., 1:2] - x[..., :1])
    return jnp.concatenate([probability, x[..., 2:6]], axis=-1)


def _within(x: Float[Array, "b h w c"], size: Int[Array, "2"]) -> Array:
    rows = jnp.arange(x.shape[1])[:, None, None] < size[0]
    return rows & (jnp.arange(x.shape[2])[:, None] < size[1])
