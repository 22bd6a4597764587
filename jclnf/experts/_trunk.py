"""Experts on a shared convolutional trunk, which sees the whole face in the reference frame.

Areas around 68 landmarks overlap many times over: here the face is sampled once, turned and sized
as the reference shape, one network computes maps of all landmarks over the whole face, and each
landmark's response is the softmax of its map over its window. Turned heads need no views: the
network has seen them in training.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.experts._base import WholeFaceExperts
from jclnf.experts._layers import (
    Layer,
    Shapes,
    check_weights,
    doubled,
    normalised,
    plain_layer,
)
from jclnf.geometry import apply_similarity, invert_similarity, sample_square
from jclnf.params import Arithmetic

TRUNK_SAMPLING = 2
"""Pixels of the network's input along one cell (reference pixel) of its maps."""
REDUCTION = 8
"""The network halves its map of cells three times: its side is a multiple of this."""


_WIDTHS = ("stem", "fine", "middle", "coarse", "joined")


def trunk_shapes(n: int, channels: Sequence[int]) -> Shapes:
    """Shapes of the trunk's convolutions, for `n` landmarks and channels at each resolution."""
    stem, fine, middle, coarse, joined = channels
    return {
        "stem": (3, 1, stem),
        "fine": (3, stem, fine),
        "middle": (3, fine, middle),
        "middle1": (3, middle, middle),
        "middle2": (3, middle, middle),
        "coarse": (3, middle, coarse),
        "coarse1": (3, coarse, coarse),
        "coarse_up": (1, coarse, middle),
        "middle3": (3, middle, middle),
        "middle_up": (1, middle, joined),
        "fine_skip": (1, fine, joined),
        "joined": (3, joined, joined),
        "maps": (1, joined, 4 * n),
    }


def trunk_network(x: Float[Array, "b y x 1"], layer: Layer) -> Float[Array, "b g g n"]:
    """Maps of all landmarks, at half the resolution of the input.

    The last layer works at a quarter of it; each of its cells gives four values for each landmark,
    one for each cell of the map within it.
    """
    relu = jax.nn.relu
    fine = relu(layer("fine", relu(layer("stem", x, 2)), 2))
    middle = relu(layer("middle", fine, 2))
    middle = relu(middle + layer("middle2", relu(layer("middle1", middle, 1)), 1))
    coarse = relu(layer("coarse", middle, 2))
    coarse = relu(coarse + layer("coarse1", coarse, 1))
    middle = relu(middle + doubled(layer("coarse_up", coarse, 1)))
    middle = relu(layer("middle3", middle, 1))
    joined = relu(doubled(layer("middle_up", middle, 1)) + layer("fine_skip", fine, 1))
    joined = relu(joined + layer("joined", joined, 1))
    return _unfolded(layer("maps", joined, 1))


def _unfolded(x: Float[Array, "b h w c"]) -> Float[Array, "b y x n"]:
    """Four channels of a landmark laid out as 2x2 cells."""
    b, h, w, c = x.shape
    parts = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, 2 * h, 2 * w, c // 4)


class TrunkExperts(WholeFaceExperts):
    """A trunk for each scale."""

    kernels: dict[str, Float[Array, "s ..."]]
    """The trunk's arrays `<layer>.kernel` and `<layer>.bias`, each stacked by scale."""
    softness: Float[Array, " s"]
    centres: Float[Array, "s v 3"]
    visible: Bool[Array, "s v n"]
    confidence: Float[Array, "s v n"]
    scalings: tuple[float, ...] = eqx.field(static=True)
    grid: int = eqx.field(static=True)
    """Side of the maps in cells, which are reference pixels."""
    middle: tuple[float, float] = eqx.field(static=True)
    """Centre (x, y) of the maps from the landmarks' centroid, in millimetres."""

    def inconsistency(self) -> str | None:
        """See `PatchExperts.inconsistency`."""
        if self.grid < REDUCTION or self.grid % REDUCTION:
            return f"grid is {self.grid}, not a multiple of {REDUCTION}"
        scales, views, n = jnp.shape(self.visible)
        if views != 1:
            return f"visible is for {views} views, not one"
        biases = [self.kernels.get(f"{name}.bias") for name in _WIDTHS]
        shapes = trunk_shapes(n, [0 if b is None else jnp.shape(b)[-1] for b in biases])
        return check_weights(self.kernels, shapes, (scales,))

    @property
    def smallest_scale(self) -> float:
        """See `PatchExperts.smallest_scale`: half the coarsest scale. Trunks are trained on blurred
        images as well; the error is a tenth larger there, and rises fast below."""
        return 0.5 * self.scalings[0]

    def respond(
        self,
        image: Real[Array, "h w"],
        landmarks: Float[Array, "n 2"],
        to_image: Float[Array, "2"],
        scale: Int[Array, ""],
        view: Int[Array, ""],
        window: int,
        *,
        arithmetic: Arithmetic,
    ) -> Float[Array, "n k k"]:
        """See `PatchExperts.respond`."""
        del view, arithmetic
        scaling = jnp.asarray(self.scalings, landmarks.dtype)[scale]
        middle = scaling * jnp.asarray(self.middle, landmarks.dtype)
        centroid = landmarks.mean(0)
        centre = centroid + apply_similarity(to_image, middle)
        square = sample_square(image, centre, to_image / TRUNK_SAMPLING, TRUNK_SAMPLING * self.grid)
        weights = {name: array[scale] for name, array in self.kernels.items()}
        maps = trunk_network(normalised(square)[None, :, :, None], plain_layer(weights))[0]
        at = apply_similarity(invert_similarity(to_image), landmarks - centroid[None])
        at = at - middle[None] + (self.grid - 1) / 2
        return responses_in_windows(maps, at, window)


def responses_in_windows(
    maps: Float[Array, "g g n"], centres: Float[Array, "n 2"], window: int
) -> Float[Array, "n k k"]:
    """Softmax of each landmark's map over the window around its centre.

    Args:
        maps: logits; beyond the border they are those at the border.
        centres: (x, y) in cells; between cells the logits are interpolated bilinearly.
        window: side `k` of a window in cells.
    """
    grid, _, n = maps.shape
    corner = centres - (window - 1) / 2
    whole = jnp.floor(jnp.clip(corner, -2.0 * grid, 2.0 * grid))
    fx, fy = (corner - whole).T[:, :, None, None]
    reach = jnp.arange(window + 1, dtype=jnp.int32)[None, None]
    cells = jnp.clip(whole.astype(jnp.int32)[:, :, None] + reach, 0, grid - 1)
    landmark = jnp.arange(n, dtype=jnp.int32)[:, None, None]
    logits = maps[cells[:, 1, :, None], cells[:, 0, None, :], landmark]
    logits = logits[:, :-1] * (1 - fy) + logits[:, 1:] * fy
    logits = logits[:, :, :-1] * (1 - fx) + logits[:, :, 1:] * fx
    return jax.nn.softmax(logits, axis=(1, 2))
