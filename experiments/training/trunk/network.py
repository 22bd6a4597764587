"""The networks, with batch normalisation in training, and without it once that is folded in.

Arrays are `(b, h, w, channels)`. A network is a function of an image and of a layer, which applies
the convolution of a name, normalised or with the normalisation multiplied in.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.training.trunk.loss import in_cells, map_loss, opening_error, positions
from jclnf.experts import Layer, Shapes, map_network, map_shapes
from jclnf.train._networks import TINY

Weights = dict[str, jax.Array]
CHUNK = 1024
"""Cells whose columns are laid out at once for a kernel's gradient: what stays in the cache."""


class Network(NamedTuple):
    """A network from crops to maps of landmarks.

    Attributes:
        widths, blocks, joined: as `jclnf.experts.map_shapes` takes them.
        landmarks: number of maps.
        split: 2 if each cell has four values for each landmark, laid out as 2x2 cells; else 1.
        openings: pairs of landmarks whose mean distance is learned beside each one's place.
        stem: as `map_shapes` takes it.
    """

    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    blocks: tuple[int, ...] = (0, 1, 1, 2, 2)
    joined: int = 48
    landmarks: int = 68
    split: int = 2
    openings: tuple[tuple[int, int], ...] = ()
    stem: int = 0

    @property
    def shapes(self) -> Shapes:
        """Those of the convolutions. Without normalisation is "maps" alone."""
        outputs = self.split**2 * self.landmarks
        return map_shapes(self.widths, self.blocks, self.joined, outputs, self.stem)

    @property
    def stride(self) -> int:
        """Pixels of a crop to one of what is left after the stem."""
        return 2 if self.stem else 1

    def __call__(self, x: jax.Array, layer: Layer) -> jax.Array:
        """What the maps are laid out from, `(b, h, w, split * split * n)`, of `(b, y, x, 1)`."""
        return map_network(x, layer, self.shapes)

    def look(self, images: jax.Array, layer: Layer) -> jax.Array:
        """The same of images `(b, y, x)` uint8."""
        return self(seen_as(images), layer)

    def loss(self, output: jax.Array, points: jax.Array, side: int) -> jax.Array:
        """How far the output for images of a side is from points `(b, n, 2)`."""
        maps = self.split * output.shape[1]
        cells = in_cells(points, side, maps)
        inside = ((cells > -0.5) & (cells < maps - 0.5)).all(-1).astype(jnp.float32)
        loss = map_loss(output, cells, inside, self.split)
        if self.openings:
            found, _ = positions(output, self.split)
            loss += opening_error(found, cells, inside, self.openings)
        return loss


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Cross-correlation with zeros around the image, XLA's "SAME".

    XLA's gradient by the kernel runs at a third of the speed of its convolutions on CPUs (24
    GFLOP/s by 65, 64 channels of 32x32 cells). Here it is a product of matrices, of few cells at a
    time so that their columns stay in the cache, at the speed of the convolutions. Accelerators
    have XLA's.
    """
    return _plain(x, kernel, stride)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> Any:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: Any, g: jax.Array) -> Any:
    x, kernel = kept
    if jax.default_backend() != "cpu":
        return jax.vjp(partial(_plain, stride=stride), x, kernel)[1](g)
    b, h, w, d = g.shape
    k, _, c, _ = kernel.shape
    if k == 1:
        flat = x.reshape(-1, c)
        by_kernel = (flat.T @ g.reshape(-1, d)).reshape(kernel.shape)
        return (g.reshape(-1, d) @ kernel[0, 0].T).reshape(x.shape), by_kernel
    faces = max(1, min(b, CHUNK // (h * w)))
    while b % faces:
        faces -= 1
    chunks = x.reshape(-1, faces, *x.shape[1:]), g.reshape(-1, faces, h, w, d)
    product = partial(lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())))
    if stride == 1:

        def add(total: jax.Array, chunk: Any) -> tuple[jax.Array, None]:
            part, gradient = chunk
            columns = _columns(gradient, (1, 1), 1)
            return total + product(part.reshape(-1, c), columns), None

        total, _ = lax.scan(add, jnp.zeros((c, k * k * d), x.dtype), chunks)
        by_kernel = total.reshape(c, k, k, d)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
        turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
        return convolve(g, turned, 1), by_kernel

    def add_strided(total: jax.Array, chunk: Any) -> tuple[jax.Array, None]:
        part, gradient = chunk
        return total + product(_columns(part, (0, 1), 2), gradient.reshape(-1, d)), None

    total, _ = lax.scan(add_strided, jnp.zeros((k * k * c, d), x.dtype), chunks)
    by_x = jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](g)[0]
    return by_x, total.reshape(kernel.shape)


def _columns(x: jax.Array, around: tuple[int, int], stride: int) -> jax.Array:
    """The 3x3 neighbourhoods of cells, `(cells, 9 c)`."""
    _, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    shifted = [
        padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(shifted, -1).reshape(-1, 9 * c)


convolve.defvjp(_forward, _backward)


def initial_weights(shapes: Shapes, key: Any) -> Weights:
    """Random kernels of variance 2 / fan-in (He et al., ICCV 2015); maps that begin flat."""
    weights = {}
    for name, k in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        side, inputs, outputs = shapes[name]
        deviation = (2.0 / (side * side * inputs)) ** 0.5 * (0.01 if name == "maps" else 1.0)
        weights[f"{name}.kernel"] = deviation * jax.random.normal(k, (side, side, inputs, outputs))
        weights[f"{name}.bias"] = jnp.zeros(outputs)
        if name != "maps":
            # A block that begins as the identity trains more steadily (Goyal et al., 2017).
            gain = 0.0 if name.startswith("block") and name.endswith("b") else 1.0
            weights[f"{name}.gain"] = jnp.full(outputs, gain)
    return weights


def normalising_layer(weights: Weights, seen: dict[str, tuple[jax.Array, jax.Array]]) -> Layer:
    """Layers that are normalised over the batch (Ioffe and Szegedy, ICML 2015); notes means and
    variances in `seen`."""

    def layer(name: str, x: jax.Array, stride: int) -> jax.Array:
        y = convolve(x, weights[f"{name}.kernel"], stride)
        if name == "maps":
            return y + weights["maps.bias"]
        out, mean, variance = batch_normalised(y, weights[f"{name}.gain"], weights[f"{name}.bias"])
        seen[name] = (mean, variance)
        return out

    return layer


@jax.custom_vjp
def batch_normalised(
    y: jax.Array, gain: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised over all but the last axis, times a gain, plus a bias; with mean and variance,
    through which no gradient is passed."""
    return _normalise(y, gain, bias)[0]


def _normalise(y: jax.Array, gain: jax.Array, bias: jax.Array) -> Any:
    mean = y.mean((0, 1, 2))
    variance = jnp.mean((y - mean) ** 2, (0, 1, 2))
    scale = lax.rsqrt(variance + TINY)
    return ((y - mean) * (scale * gain) + bias, mean, variance), (y, mean, scale, gain)


def _normalise_backward(kept: Any, gradients: Any) -> Any:
    y, mean, scale, gain = kept
    g, count = gradients[0], y[..., 0].size
    by_bias = g.sum((0, 1, 2))
    by_gain = (g * (y - mean)).sum((0, 1, 2)) * scale
    inner = g - (by_bias + (y - mean) * (scale * by_gain)) / count
    return inner * (scale * gain), by_gain, by_bias


batch_normalised.defvjp(_normalise, _normalise_backward)


def folded_layer(weights: Mapping[str, jax.Array]) -> Layer:
    """Layers of folded weights."""

    def layer(name: str, x: jax.Array, stride: int) -> jax.Array:
        y = convolve(x, weights[f"{name}.kernel"], stride)
        return y + weights[f"{name}.bias"]

    return layer


def seen_as(images: jax.Array) -> jax.Array:
    """Pictures `(b, y, x)` uint8 less their mean, over their standard deviation."""
    x = images.astype(jnp.float32)
    x = x - x.mean((1, 2), keepdims=True)
    return (x * lax.rsqrt(jnp.mean(x**2, (1, 2), keepdims=True) + 1.0))[..., None]
