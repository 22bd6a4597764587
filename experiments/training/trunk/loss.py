"""Where a map's landmark is, and how far that is off: mean positions of softmaxes.

A network's output `(b, h, w, s * s * n)` has `s * s` values of each of `n` landmarks in each cell,
which lie in the maps `(s h, s w)` as `(y, x)` within the cell. Positions are in cells of the maps,
centres at integers.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

WIDTH = 1.0
"""Standard deviation in cells of the Gaussian that maps are compared with."""
SHARE = 1.0
"""Weight of that cross-entropy beside the distance in cells."""


def _coordinates(h: int, w: int, split: int) -> tuple[jax.Array, jax.Array]:
    """(x, y) of each value of the output, `(1, w, 1, s, 1)` and `(h, 1, s, 1, 1)`."""
    x = (split * jnp.arange(w)[:, None] + jnp.arange(split)).astype(jnp.float32)
    y = (split * jnp.arange(h)[:, None] + jnp.arange(split)).astype(jnp.float32)
    return x[None, :, None, :, None], y[:, None, :, None, None]


def _parts(output: jax.Array, split: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values `(b, h, w, s, s, n)`, their largest and the sum of exponentials, `(b, n)`."""
    b, h, w, _ = output.shape
    values = output.reshape(b, h, w, split, split, -1)
    largest = values.max((1, 2, 3, 4))
    return values, largest, jnp.exp(values - _wide(largest)).sum((1, 2, 3, 4))


def _wide(per_landmark: jax.Array) -> jax.Array:
    b, n = per_landmark.shape
    return per_landmark.reshape(b, 1, 1, 1, 1, n)


def positions(output: jax.Array, split: int) -> tuple[jax.Array, jax.Array]:
    """Mean positions `(b, n, 2)` of the maps' softmaxes, in cells, and their variances `(b, n)`."""
    values, largest, total = _parts(output, split)
    share = jnp.exp(values - _wide(largest)) / _wide(total)
    x, y = _coordinates(*output.shape[1:3], split)
    along_x, along_y = share.sum((1, 3)), share.sum((2, 4))  # (b, w, s, n), (b, h, s, n)
    x, y = x.reshape(*along_x.shape[1:3], 1), y.reshape(*along_y.shape[1:3], 1)
    mean = jnp.stack([(along_x * x).sum((1, 2)), (along_y * y).sum((1, 2))], -1)
    square = (along_x * x**2).sum((1, 2)) + (along_y * y**2).sum((1, 2))
    return mean, square - (mean**2).sum(-1)


def _expected(values: jax.Array, points: jax.Array, split: int) -> tuple[jax.Array, jax.Array]:
    """The Gaussians around the points, normalised along each axis, as factors of the target.

    Those of points outside are at the border: none must vanish on the whole map.
    """
    x, y = _coordinates(*values.shape[1:3], split)
    ends = split * jnp.array(values.shape[2:0:-1]) - 1.0
    px, py = (_wide(jnp.clip(points, 0.0, ends)[..., k]) for k in (0, 1))
    gx = jnp.exp(-((x - px) ** 2) / (2 * WIDTH**2))
    gy = jnp.exp(-((y - py) ** 2) / (2 * WIDTH**2))
    return gx / gx.sum((2, 4), keepdims=True), gy / gy.sum((1, 3), keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def map_loss(output: jax.Array, points: jax.Array, weights: jax.Array, split: int) -> jax.Array:
    """Mean over landmarks of the distance and a share of the cross-entropy.

    Args:
        output: `(b, h, w, s * s * n)`.
        points: `(b, n, 2)` true positions in cells.
        weights: `(b, n)`, of each landmark.
        split: `s`.
    """
    return _loss_forward(output, points, weights, split)[0]


def _loss_forward(
    output: jax.Array, points: jax.Array, weights: jax.Array, split: int
) -> tuple[jax.Array, Any]:
    values, largest, total = _parts(output, split)
    x, y = _coordinates(*output.shape[1:3], split)
    share = jnp.exp(values - _wide(largest))
    mean = jnp.stack(
        [(share * x).sum((1, 2, 3, 4)) / total, (share * y).sum((1, 2, 3, 4)) / total], -1
    )
    distance = jnp.sqrt(((mean - points) ** 2).sum(-1) + 1e-6)
    gx, gy = _expected(values, points, split)
    cross = largest + jnp.log(total) - (values * gx * gy).sum((1, 2, 3, 4))
    loss = (weights * (distance + SHARE * cross)).sum() / distance.size
    return loss, (output, points, weights, largest, total, mean, distance)


def _loss_backward(split: int, kept: Any, g: jax.Array) -> Any:
    # One pass over the maps: share * (SHARE + (position - mean) . direction) - SHARE * target.
    output, points, weights, largest, total, mean, distance = kept
    b, h, w, _ = output.shape
    values = output.reshape(b, h, w, split, split, -1)
    x, y = _coordinates(h, w, split)
    factor = g * weights / distance.size
    along = (mean - points) / distance[..., None]
    constant = SHARE - (mean * along).sum(-1)
    ux, uy, u = (_wide(factor * a / total) for a in (along[..., 0], along[..., 1], constant))
    gx, gy = _expected(values, points, split)
    gx = lax.optimization_barrier(gx * _wide(SHARE * factor))
    gy = lax.optimization_barrier(gy)
    by_values = jnp.exp(values - _wide(largest)) * (ux * x + (uy * y + u)) - gx * gy
    return by_values.reshape(output.shape), jnp.zeros_like(points), jnp.zeros_like(weights)


map_loss.defvjp(_loss_forward, _loss_backward)


def opening_error(
    found: jax.Array, points: jax.Array, weights: jax.Array, pairs: tuple[tuple[int, int], ...]
) -> jax.Array:
    """Mean over faces of how far the mean distance of pairs of landmarks is off, in cells.

    Args:
        found, points: `(b, n, 2)` found and true positions in cells.
        weights: `(b, n)`; a face counts by the least of those of its pairs.
        pairs: of landmarks.
    """
    one, other = (jnp.array(ends) for ends in zip(*pairs, strict=True))

    def opening(at: jax.Array) -> jax.Array:
        return jnp.sqrt(((at[:, one] - at[:, other]) ** 2).sum(-1) + 1e-6).mean(1)

    share = jnp.minimum(weights[:, one], weights[:, other]).min(1)
    return (share * jnp.abs(opening(found) - opening(points))).mean()


def in_cells(points: jax.Array, side: int, cells: int) -> jax.Array:
    """Positions in cells of a map of points in pixels of a crop."""
    return (points + 0.5) * (cells / side) - 0.5


def in_pixels(cells_at: jax.Array, side: int, cells: int) -> jax.Array:
    """The reverse of `in_cells`."""
    return (cells_at + 0.5) * (side / cells) - 0.5
