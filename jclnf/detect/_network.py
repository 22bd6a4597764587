"""The network that `FaceDetector` looks at an image with: boxes and scores at three strides.

One look, without anchors (Tian et al., "FCOS", ICCV 2019): each cell of the maps says how likely
it is near the middle of a face whose size belongs to its stride, and what box that face has.
Arrays are `(b, h, w, channels)`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jclnf.experts import Layer, Shapes, doubled

STRIDES = (8, 16, 32)
MULTIPLE = STRIDES[-1]
"""Sides of images are multiples of it."""
OUTPUTS = 7
"""Of each cell: score, centre of the box (2), size (2), sine and cosine of the head's roll."""

_PIXELS = 4
"""Side in pixels of the squares whose pixels are the first layer's channels."""
_STEM = 24
_WIDTHS = (32, 64, 96)
"""Channels at each stride."""
_JOINED = 32
"""Channels that the outputs are read from."""
_SIZE = 3.5
"""Sides of a cell that a box has whose size is given as 0."""
_PRIOR = -4.0
"""Score of a cell before anything is learned, as a logit: few cells are faces (Lin et al., "Focal
loss", ICCV 2017)."""


def _shapes() -> Shapes:
    shapes = {"stem": (3, _PIXELS**2, _STEM)}
    before = _STEM
    for i, width in enumerate(_WIDTHS):
        shapes[f"down{i}"] = (3, before, width)
        shapes[f"block{i}a"] = shapes[f"block{i}b"] = (3, width, width)
        shapes[f"across{i}"] = (1, width, _JOINED)
        shapes[f"head{i}"] = (3, _JOINED, _JOINED)
        before = width
    return {**shapes, "maps": (1, _JOINED, OUTPUTS)}


SHAPES = _shapes()
"""Kernel side, input and output channels of each convolution."""


def look(images: UInt8[Array, "b h w"], layer: Layer) -> Float[Array, "b cells outputs"]:
    """What the network says of each cell, in the order of `cells`; see `boxes_of`.

    Args:
        images: Grey levels; sides are multiples of `MULTIPLE`.
        layer: Applies the convolution of a name, see `SHAPES`.
    """
    b, h, w = images.shape
    x = (images.astype(jnp.float32) - 128) / 64
    x = x.reshape(b, h // _PIXELS, _PIXELS, w // _PIXELS, _PIXELS).transpose(0, 1, 3, 2, 4)
    x = jax.nn.relu(layer("stem", x.reshape(b, h // _PIXELS, w // _PIXELS, _PIXELS**2), 1))
    seen = []
    for i in range(len(STRIDES)):
        x = jax.nn.relu(layer(f"down{i}", x, 2))
        x = jax.nn.relu(x + layer(f"block{i}b", jax.nn.relu(layer(f"block{i}a", x, 1)), 1))
        seen.append(x)
    joined: list[Array] = []
    for i in reversed(range(len(STRIDES))):
        across = layer(f"across{i}", seen[i], 1)
        joined.insert(0, across + doubled(joined[0]) if joined else across)
    heads = [jax.nn.relu(layer(f"head{i}", jax.nn.relu(x), 1)) for i, x in enumerate(joined)]
    flat = jnp.concatenate([head.reshape(b, 1, -1, _JOINED) for head in heads], axis=2)
    return layer("maps", flat, 1)[:, 0]


def cells(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres `(cells, 2)` x, y in pixels and strides `(cells,)` of an image's cells, float32."""
    centres, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        centres.append(np.stack([x.ravel(), y.ravel()], axis=1) * stride + (stride - 1) / 2)
        strides.append(np.full(x.size, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def boxes_of(
    outputs: Float[Array, "*b cells outputs"], height: int, width: int
) -> tuple[Float[Array, "*b cells"], Float[Array, "*b cells 4"]]:
    """Scores as logits, and boxes as x, y of the centre, w, h in pixels."""
    centres, strides = cells(height, width)
    middle = centres + outputs[..., 1:3] * strides[:, None]
    size = jnp.exp(jnp.clip(outputs[..., 3:5], -3, 3)) * (_SIZE * strides[:, None])
    return outputs[..., 0] + _PRIOR, jnp.concatenate([middle, size], axis=-1)
