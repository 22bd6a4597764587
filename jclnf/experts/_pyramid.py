"""Experts on one network that sees the whole face, and on finer ones that see parts of it again.

The whole face is sampled once, sized and turned as the reference shape, and a network computes a
map of each landmark over all of it. At scales that are refined, eyes and mouth (or whatever the
model has networks for) are then sampled again at a higher resolution, centred where the first maps
say that they are, and the maps of their landmarks are those of the finer networks. All scales share
one set of weights: a second scale is a second look, from a frame that fits better.

Training asks of a map that the mean of its softmax, over the whole map, be where the landmark is. A
window would cut off what that mean needs, and a mean shift find the mode instead. So a response is
the Gaussian of the map's mean and covariance, which says the same in any window.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.errors import ModelFileError, check_fields
from jclnf.experts._base import GaussianResponses, WholeFaceExperts
from jclnf.experts._layers import Layer, Shapes, check_weights, doubled, plain_layer
from jclnf.geometry import (
    apply_similarity,
    fence,
    invert_similarity,
    precise,
    product,
    sample_square,
    similarity_between,
    similarity_matrix,
)
from jclnf.params import Arithmetic

LEAST_VARIANCE = 1.0
"""Added to the variance of a crop's grey levels that it is divided by the root of."""
LEAST_SPREAD = 0.5
"""Variance in square reference pixels added to a response, so that none is a single point."""
LEAST_RESOLUTION = 0.25
"""How much less than its network's resolution a face in an image may have."""


def map_shapes(
    widths: Sequence[int], blocks: Sequence[int], joined: int, outputs: int, stem: int = 0
) -> Shapes:
    """Shapes of the convolutions of a map network.

    Args:
        widths: channels at each resolution, the first at half the crop's side.
        blocks: residual blocks at each resolution.
        joined: channels of the layer that the maps are read from, at a quarter of the crop's side.
        outputs: numbers in each cell of that.
        stem: channels of a convolution before all others, which halves the crop: "the crop's side"
            is then half of what it is. 0 if there is none.
    """
    found, inputs = {}, 1
    if stem:
        found["stem"], inputs = (3, 1, stem), stem
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        found[f"down{level}"] = (3, inputs, width)
        for block in range(count):
            found[f"block{level}_{block}a"] = (3, width, width)
            found[f"block{level}_{block}b"] = (3, width, width)
        inputs = width
    for level in range(len(widths) - 2, 0, -1):
        width = joined if level == 1 else widths[level]
        found[f"up{level}"] = (1, inputs, width)
        if width != widths[level]:
            found[f"skip{level}"] = (1, widths[level], width)
        found[f"joined{level}"] = (3, width, width)
        inputs = width
    found["maps"] = (1, inputs, outputs)
    return found


def map_network(
    x: Float[Array, "b y x 1"], layer: Layer, names: Collection[str]
) -> Float[Array, "b h w outputs"]:
    """What the maps are laid out from, at a quarter of the crop's resolution; an eighth with a
    stem.

    Args:
        x: crops.
        layer: applies the convolution of a name.
        names: of all convolutions, see `map_shapes`; they say how the network is built.
    """
    relu, seen = jax.nn.relu, []
    if "stem" in names:
        x = relu(layer("stem", x, 2))
    for level, blocks in enumerate(_blocks(names)):
        x = relu(layer(f"down{level}", x, 2))
        for block in range(blocks):
            inner = relu(layer(f"block{level}_{block}a", x, 1))
            x = relu(x + layer(f"block{level}_{block}b", inner, 1))
        seen.append(x)
    for level in range(len(seen) - 2, 0, -1):
        skip = f"skip{level}"
        beside = layer(skip, seen[level], 1) if skip in names else seen[level]
        x = relu(doubled(layer(f"up{level}", x, 1)) + beside)
        x = relu(layer(f"joined{level}", x, 1))
    return layer("maps", x, 1)


def _blocks(names: Collection[str]) -> list[int]:
    """Residual blocks at each resolution of the network whose convolutions have these names."""
    found: list[int] = []
    while f"down{len(found)}" in names:
        count = 0
        while f"block{len(found)}_{count}a" in names:
            count += 1
        found.append(count)
    return found


class Moments(NamedTuple):
    """Where landmarks are, in millimetres of the reference frame."""

    mean: Float[Array, "n 2"]
    covariance: Float[Array, "n 2 2"]

    def moved(self, by: Float[Array, "2"]) -> "Moments":
        return Moments(self.mean + by[None], self.covariance)

    def mirrored(self) -> "Moments":
        """With x the other way round."""
        flip = jnp.array([-1.0, 1.0], self.mean.dtype)
        both_ways = flip[:, None] * flip[None]
        return Moments(self.mean * flip[None], self.covariance * both_ways[None])

    def turned(self, by: Float[Array, "2"]) -> "Moments":
        """About the origin, and sized."""
        turn = similarity_matrix(by)
        return Moments(product(self.mean, turn.T), product(product(turn, self.covariance), turn.T))

    def replaced(self, index: np.ndarray, other: "Moments") -> "Moments":
        """With those of some landmarks from another."""
        changed: Moments = jax.tree.map(lambda mine, new: mine.at[index].set(new), self, other)
        return changed


class MapNetwork(eqx.Module):
    """A network from a square crop of the reference frame to maps of some landmarks over it."""

    kernels: dict[str, Float[Array, "..."]]
    """Arrays `<layer>.kernel` and `<layer>.bias`, see `map_shapes`."""
    landmarks: tuple[int, ...] = eqx.field(static=True)
    """The landmarks that its maps are of."""
    side: int = eqx.field(static=True)
    """Side of a crop in pixels."""
    extent: float = eqx.field(static=True)
    """Side of a crop in millimetres."""
    mirrored: tuple[int, ...] = eqx.field(static=True, default=())
    """The landmarks that its maps are of in the mirror image; empty if they are not sought there.
    A network of one eye so serves the other."""

    def __check_init__(self) -> None:
        where = "map network"
        check_fields(self, where)
        names = [name.removesuffix(".bias") for name in self.kernels if name.endswith(".bias")]
        blocks = _blocks(names)
        problem = None
        if len(blocks) < 3:
            problem = f"it has {len(blocks)} resolutions, not 3 or more"
        elif self.side % (self.stride * 2 ** len(blocks)) or not self.extent > 0:
            problem = f"side {self.side} cannot be halved so often, or extent is {self.extent}"
        elif self.mirrored and len(self.mirrored) != len(self.landmarks):
            problem = f"{len(self.mirrored)} mirror images of {len(self.landmarks)} landmarks"
        else:
            widths = [jnp.shape(self.kernels[f"down{k}.bias"])[-1] for k in range(len(blocks))]
            joined = jnp.shape(self.kernels.get("joined1.bias", np.zeros(1)))[-1]
            outputs = jnp.shape(self.kernels.get("maps.bias", np.zeros(1)))[-1]
            split = max(1, round((outputs / max(len(self.landmarks), 1)) ** 0.5))
            outputs = split**2 * len(self.landmarks)
            stem = jnp.shape(self.kernels["stem.bias"])[-1] if "stem.bias" in self.kernels else 0
            shapes = map_shapes(widths, blocks, joined, outputs, stem)
            problem = check_weights(self.kernels, shapes)
        if problem is not None:
            raise ModelFileError(where, problem)

    @property
    def split(self) -> int:
        """Cells of a map, along each axis, that one cell of the network's output has values for."""
        return round((self.kernels["maps.bias"].shape[-1] / len(self.landmarks)) ** 0.5)

    @property
    def stride(self) -> int:
        """Pixels of a crop to one of what is left after the stem."""
        return 2 if "stem.bias" in self.kernels else 1

    @property
    def grid(self) -> int:
        """Side of a map in cells."""
        return self.split * self.side // (4 * self.stride)

    @property
    def cell(self) -> float:
        """Side of a map's cell in millimetres."""
        return self.extent / self.grid

    def crop(
        self, image: Real[Array, "h w"], centre: Float[Array, "2"], from_mm: Float[Array, "2"]
    ) -> Float[Array, "side side"]:
        """What the network sees around a point.

        Args:
            image: grey levels.
            centre: (x, y) in image pixels.
            from_mm: similarity from millimetres of the reference frame to the image.
        """
        return sample_square(image, centre, from_mm * (self.extent / self.side), self.side)

    def maps(self, crops: Float[Array, "b side side"]) -> Float[Array, "b h w s s n"]:
        """Logits of each landmark's place, as the network gives them: in each of its cells, rows
        and columns of the map's."""
        centred = crops - crops.mean((1, 2), keepdims=True)
        power = jnp.mean(centred**2, (1, 2), keepdims=True)
        x = (centred * lax.rsqrt(power + LEAST_VARIANCE))[..., None]
        names = [name.removesuffix(".bias") for name in self.kernels if name.endswith(".bias")]
        output = fence(map_network(x, plain_layer(self.kernels), names))
        b, h, w, _ = output.shape
        return output.reshape(b, h, w, self.split, self.split, len(self.landmarks))

    def moments(self, maps: Float[Array, "h w s s n"]) -> Moments:
        """Mean and covariance of the maps' softmaxes, from the centre of the crop."""
        axes = (0, 1, 2, 3)
        share = jnp.exp(maps - lax.stop_gradient(maps.max(axes, keepdims=True)))
        total = share.sum(axes)
        cells = self.cell * (jnp.arange(self.grid, dtype=maps.dtype) - (self.grid - 1) / 2)
        places = cells.reshape(-1, self.split)
        across, down = (share.sum(out) / total[None, None] for out in ((0, 2), (1, 3)))
        mean = precise("ps,kpsn->nk", places, jnp.stack([across, down]))
        # Centred before they are squared: far from the crop's centre little would be left.
        x, y = (places[..., None] - mean[None, None, :, k] for k in (0, 1))
        xx, yy = jnp.sum(across * x**2, (0, 1)), jnp.sum(down * y**2, (0, 1))
        xy = jnp.sum(y * jnp.sum(share * x[None, :, None], (1, 3)), (0, 1)) / total
        return Moments(mean, jnp.stack([xx, xy, xy, yy], axis=1).reshape(-1, 2, 2))


class PyramidExperts(WholeFaceExperts):
    """One network of the whole face for all scales, and networks of parts of it at some."""

    face: MapNetwork
    """Of all landmarks, in their order."""
    regions: tuple[MapNetwork, ...]
    """Of some of them, each centred on its landmarks' mean."""
    softness: Float[Array, " s"]
    centres: Float[Array, "s v 3"]
    visible: Bool[Array, "s v n"]
    confidence: Float[Array, "s v n"]
    scalings: tuple[float, ...] = eqx.field(static=True)
    refined: tuple[bool, ...] = eqx.field(static=True)
    """At which scales the regions are seen again."""
    middle: tuple[float, float] = eqx.field(static=True)
    """Centre (x, y) of the face's crop from the landmarks' centroid, in millimetres."""

    def inconsistency(self) -> str | None:
        """See `PatchExperts.inconsistency`."""
        scales, views, n = jnp.shape(self.visible)
        if views != 1:
            return f"visible is for {views} views, not one"
        if len(self.refined) != scales:
            return f"refined has {len(self.refined)} values for {scales} scales"
        if self.face.landmarks != tuple(range(n)):
            return f"the face's network has {len(self.face.landmarks)} landmarks, not all {n}"
        for region in self.regions:
            index = region.landmarks + region.mirrored
            if min(index) < 0 or max(index) >= n:
                return f"a region has the landmarks {index}, of {n}"
        return None

    @property
    def smallest_scale(self) -> float:
        """See `PatchExperts.smallest_scale`: a part of the network's resolution. It has seen images
        that were reduced so far."""
        return LEAST_RESOLUTION * self.face.side / (self.face.stride * self.face.extent)

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
    ) -> GaussianResponses:
        """See `PatchExperts.respond`."""
        del view, window, arithmetic
        scaling = jnp.asarray(self.scalings, landmarks.dtype)[scale]
        from_mm = scaling * to_image
        centroid = landmarks.mean(0)
        middle = jnp.asarray(self.middle, landmarks.dtype)

        at = apply_similarity(invert_similarity(from_mm), landmarks - centroid[None])

        # Places are in millimetres of the reference frame, from the landmarks' centroid.
        def crop(
            network: MapNetwork, centre: Float[Array, "2"], turn: Float[Array, "2"]
        ) -> Float[Array, "side side"]:
            where = centroid + apply_similarity(from_mm, centre)
            return network.crop(image, where, apply_similarity(from_mm, turn))

        upright = jnp.array([1.0, 0.0], landmarks.dtype)
        coarse = self.face.moments(self.face.maps(crop(self.face, middle, upright)[None])[0])
        coarse = coarse.moved(middle)

        def refine() -> Moments:
            found = coarse
            # Regions are seen in the frame of what the whole face's network found.
            turn = similarity_between(at, coarse.mean, least_squares=True)
            for region in self.regions:
                sides = [np.array(side) for side in (region.landmarks, region.mirrored) if side]
                centres = [coarse.mean[index].mean(0) for index in sides]
                crops = jnp.stack([crop(region, centre, turn) for centre in centres])
                # The second one is seen in the mirror.
                maps = region.maps(jnp.concatenate([crops[:1], crops[1:, :, ::-1]]))
                finer = [region.moments(each) for each in maps]
                finer[1:] = [each.mirrored() for each in finer[1:]]
                for index, centre, each in zip(sides, centres, finer, strict=True):
                    found = found.replaced(index, each.turned(turn).moved(centre))
            return found

        found = coarse
        if isinstance(scale, jax.core.Tracer):
            found = lax.cond(jnp.asarray(self.refined)[scale], refine, lambda: coarse)
        elif self.refined[int(scale)]:
            # Not as a branch: in one, XLA has slow convolutions for derivatives on CPUs.
            found = refine()
        spread = LEAST_SPREAD * jnp.eye(2, dtype=landmarks.dtype)[None]
        return GaussianResponses(
            scaling * (found.mean - at), scaling**2 * found.covariance + spread
        )
