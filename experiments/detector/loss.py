"""What cells of the detector's maps should say, and how far they are from it.

A face is learned by the cells near its middle at the stride that its size belongs to. Their score
is to be the overlap of their box with the true one, that of all other cells 0 (Zhang et al.,
"VarifocalNet", CVPR 2021); boxes are compared by what they share and by the distance of their
centres (Zheng et al., "Distance-IoU loss", AAAI 2020).
"""

import jax
import jax.numpy as jnp

from jclnf.detect._network import STRIDES, boxes_of, cells

FIELDS = 8
"""Of a label: x, y of the centre, w, h in pixels; what it is; how much its box is trusted, 0-1;
sine and cosine of the head's roll, both 0 if that is not known."""
NONE, FACE, DOUBTFUL = 0, 1, 2
"""What a label is: nothing; a face; a place of which nothing is known."""

LIMITS = (0.0, 36.0, 84.0, 1e6)
"""Sides in pixels of faces from which, and to which, each stride has them."""
ALSO = 1.35
"""Factor beyond the limits, in which a stride may have them or not."""
NEAR, NEAR_CELLS = 0.2, 0.9
"""How far from a face's middle, in sides of the face or of a cell, cells are its own."""
AROUND = 1.6
"""Times as far, cells may be its own or not."""
LEAST = 0.2
"""Least overlap that is asked of a face's cell, so that scores are learned before boxes are."""
BOX, ROLL = 2.0, 0.3
"""Weights beside the scores' loss."""


def detection_loss(outputs: jax.Array, labels: jax.Array, side: int) -> jax.Array:
    """Mean over the faces' cells.

    Args:
        outputs: `(b, cells, OUTPUTS)` of the network.
        labels: `(b, g, FIELDS)`.
        side: of the images in pixels.
    """
    logits, boxes = boxes_of(outputs, side, side)
    own, free, which = assigned(labels, side)
    at = jnp.take_along_axis(labels, which[..., None], axis=1)
    truth, trust = at[..., :4], at[..., 5]
    shared, apart = overlaps(boxes, truth)
    asked = jnp.maximum(jax.lax.stop_gradient(shared), LEAST)
    # A box that is not trusted says little about how good a cell's is.
    asked = jnp.where(trust < 1, jnp.maximum(asked, 0.7), asked)
    asked = jnp.where(own, asked, 0.0)
    chance = jax.nn.sigmoid(logits)
    entropy = jax.nn.softplus(logits) - asked * logits
    weight = jnp.where(own, asked, 0.75 * jax.lax.stop_gradient(chance) ** 2)
    scores = jnp.where(free, 0.0, weight * entropy).sum()
    box = (jnp.where(own, trust, 0.0) * (1 - shared + apart)).sum()
    known = jnp.where(own, (at[..., 6:] ** 2).sum(-1), 0.0)
    roll = (known * ((outputs[..., 5:7] - at[..., 6:]) ** 2).sum(-1)).sum()
    return (scores + BOX * box + ROLL * roll) / jnp.maximum(own.sum(), 1)


def assigned(labels: jax.Array, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which cells are a face's own, which may say anything, and of which label a cell is;
    `(b, cells)`."""
    centres, strides = cells(side, side)
    x, y, w, h, kind = (labels[:, None, :, i] for i in range(5))
    face, doubtful = kind == FACE, kind == DOUBTFUL
    size = jnp.sqrt(jnp.maximum(w * h, 1e-6))
    dx = jnp.abs(centres[None, :, :1] - x)
    dy = jnp.abs(centres[None, :, 1:] - y)
    stride = strides[None, :, None]
    low = sum(jnp.where(stride == s, LIMITS[i], 0.0) for i, s in enumerate(STRIDES))
    high = sum(jnp.where(stride == s, LIMITS[i + 1], 0.0) for i, s in enumerate(STRIDES))
    reach_x = jnp.maximum(NEAR * w, NEAR_CELLS * stride)
    reach_y = jnp.maximum(NEAR * h, NEAR_CELLS * stride)
    far = jnp.maximum(dx / reach_x, dy / reach_y)
    own = face & (far < 1) & (size >= low) & (size < high)
    free = face & (far < AROUND) & (size >= low / ALSO) & (size < high * ALSO)
    free |= doubtful & (dx < 0.6 * w + stride / 2) & (dy < 0.6 * h + stride / 2)
    which = jnp.argmin(jnp.where(own, far, jnp.inf), axis=-1)
    any_own = own.any(-1)
    return any_own, free.any(-1) & ~any_own, which


def overlaps(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Area common to boxes (centre and size) as a part of what both cover, and the squared distance
    of their centres as a part of the squared diagonal around both."""
    low_a, high_a = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    low_b, high_b = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    sides = jnp.maximum(jnp.minimum(high_a, high_b) - jnp.maximum(low_a, low_b), 0)
    common = sides.prod(-1)
    whole = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - common
    around = jnp.maximum(high_a, high_b) - jnp.minimum(low_a, low_b)
    apart = ((a[..., :2] - b[..., :2]) ** 2).sum(-1) / jnp.maximum((around**2).sum(-1), 1e-6)
    return common / jnp.maximum(whole, 1e-6), apart
