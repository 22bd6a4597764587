"""Fits of a model to learn its confidence from: right ones, wrong ones, and of what is no face."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jclnf.evaluation import OUTER_EYES
from jclnf.fitting import Model, characteristics, fit_from, initial_state, read_off
from jclnf.geometry import Pose, clamp, retract
from jclnf.train._augment import augment
from jclnf.train._batches import Example, Maker, warped
from jclnf.train._faces import Faces

PICTURE = 160
"""Side in pixels of the pictures that faces are fitted in."""
MARGIN = (2.0, 3.2)
"""Their side in mean sides of the box: a range to draw from."""
KINDS = {"box": 0.42, "start": 0.18, "beside": 0.1, "sized": 0.14, "nothing": 0.16}
"""Parts of the examples: boxes that are off, a little or so far that no fit finds back; starts of
wrong pose and shape; boxes beside the face; boxes of quite another size; pictures of no face."""

_TURN = 0.22  # radians, as trunk and start have seen them
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class FitExamples:
    """Makes pictures of faces with boxes and starts that a fit succeeds or fails from.

    Attributes:
        faces: annotated faces.
        mirror: `(n,)` index of each landmark's mirror image.
        kinds: parts of the examples, as in `KINDS`; "given" are boxes as a detector gives them.
    """

    faces: Faces
    mirror: np.ndarray
    kinds: Mapping[str, float] = dataclasses.field(default_factory=KINDS.copy)

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`picture` (PICTURE, PICTURE) uint8; `box` (4,) and `points` (n, 2) in its pixels, NaN
        where there is no face; how far the start is `moved`, and the `seed` of that."""
        picture, points = self.faces.pictures[face], self.faces.points[face]
        if rng.random() < 0.5:
            picture = np.ascontiguousarray(picture[:, ::-1])
            points = points[self.mirror] * [-1, 1] + [picture.shape[1] - 1, 0]
        kind = str(rng.choice(list(self.kinds), p=list(self.kinds.values())))
        low, high = points.min(0), points.max(0)
        if kind == "nothing":
            picture, points = no_face(picture, rng), np.full_like(points, np.nan)
        centre, extent = _box(kind, (low + high) / 2, high - low, rng)
        any_way_up = kind != "given" and rng.random() < 0.1
        turn = rng.uniform(-np.pi, np.pi) if any_way_up else rng.normal(0, _TURN)
        step = rng.uniform(*MARGIN) * extent.mean() / PICTURE
        change = step * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        pad = max(picture.shape)
        beyond: Any = rng.choice(["constant", "edge", "reflect"])
        seen = warped(np.pad(picture, pad, mode=beyond), centre + pad, change, PICTURE)
        middle = (PICTURE - 1) / 2
        return {
            "picture": augment(seen, rng) if rng.random() < 0.5 else seen,
            "box": np.concatenate([middle - extent / step / 2, extent / step]).astype(np.float32),
            "points": ((points - centre) @ np.linalg.inv(change).T + middle).astype(np.float32),
            "moved": np.float32(rng.uniform() if kind == "start" else 0.0),
            "seed": np.uint32(rng.integers(2**31)),
        }


def _box(
    kind: str, centre: np.ndarray, extent: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centre and extent of a box, from those of the face."""
    side = extent.mean()
    if kind in ("given", "box", "nothing"):
        far = 0.0 if kind == "given" else rng.uniform() ** 1.5
        centre = centre + side * rng.normal(0, 0.03 + 0.35 * far, 2)
        extent = extent * np.exp(rng.normal(0, 0.05 + 0.3 * far))
        extent = extent * np.exp(rng.normal(0, 0.03 + 0.07 * far, 2))
    elif kind == "beside":
        angle, apart = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2)
        centre = centre + apart * side * np.array([np.cos(angle), np.sin(angle)])
        extent = extent * rng.uniform(0.3, 1.2)
    elif kind == "sized":
        centre = centre + side * rng.normal(0, 0.15, 2)
        extent = extent * rng.uniform(*((0.2, 0.65) if rng.random() < 0.5 else (1.6, 3.0)))
    return centre, extent


def no_face(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture `(h, w)` uint8 of no face: noise of some coarseness and contrast, or what is in
    `picture`, in disorder."""
    height, width = picture.shape
    tiles = int(rng.integers(5, 9))  # a face is larger than two of them
    h, w = height // tiles, width // tiles
    if rng.random() < 0.4 and min(h, w) > 0:
        blocks = picture[: h * tiles, : w * tiles].reshape(tiles, h, tiles, w)
        shuffled = rng.permutation(blocks.transpose(0, 2, 1, 3).reshape(-1, h, w))
        mixed = shuffled.reshape(tiles, tiles, h, w).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(mixed.reshape(h * tiles, w * tiles))
    total = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        noise: np.ndarray = rng.normal(size=(height, width)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), float(np.exp(rng.uniform(-1.2, 3.0))))
        total += np.float32(rng.uniform(0.2, 1.0)) * noise / noise.std()
    contrast = np.exp(rng.uniform(-1.0, 4.3))
    return np.clip(np.rint(rng.uniform(40, 215) + contrast * total), 0, 255).astype(np.uint8)


def made(make: Maker, count: int, each: int, *, seed: int, threads: int = 2) -> Iterator[Example]:
    """`each` examples of each of `count` faces; what they are follows from the seed alone."""

    def one(at: tuple[int, int]) -> Example:
        return make(at[1], np.random.default_rng([seed, *at]))

    with ThreadPoolExecutor(threads) as pool:
        for repeat in range(each):
            for first in range(0, count, _CHUNK):
                several = range(first, min(first + _CHUNK, count))
                yield from pool.map(one, [(repeat, face) for face in several])


class Fits(NamedTuple):
    """Fits, and how far off they were; arrays with a leading axis `b`."""

    given: Float[np.ndarray, "b q"]
    """What a confidence is taken from, see `jclnf.fitting.characteristics`."""
    errors: Float[np.ndarray, "b n"]
    """Distance of each landmark from the truth in % of the eye distance; NaN without a face."""

    @property
    def error(self) -> Float[np.ndarray, " b"]:
        """Mean over the landmarks."""
        return self.errors.mean(axis=1)


def fits_of(model: Model, examples: Iterable[Example]) -> Fits:
    """Fit each example, on all of JAX's devices. Fits that are not finite are left out."""
    devices = jax.local_devices()
    models = [jax.device_put(model, device) for device in devices]
    fitted: list[Any] = []
    for number, (batch, count) in enumerate(chunks(examples)):
        device = number % len(devices)
        found = _fits(models[device], jax.device_put(batch, devices[device]))
        fitted.append((count, found))
        if number >= len(devices):  # The host is not to run ahead, with all pictures in memory.
            jax.block_until_ready(fitted[number - len(devices)])
    parts = [Fits(*(np.asarray(array)[:count] for array in found)) for count, found in fitted]
    fits = Fits(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    finite = np.isfinite(fits.given).all(axis=1)
    return Fits(fits.given[finite], fits.errors[finite])


def chunks(examples: Iterable[Example]) -> Iterator[tuple[Example, int]]:
    """Examples stacked to batches of one size, and how many of each count."""
    part: list[Example] = []

    def stacked() -> tuple[Example, int]:
        filled = part + part[-1:] * (_CHUNK - len(part))
        return {key: np.stack([one[key] for one in filled]) for key in part[0]}, len(part)

    for example in examples:
        part.append(example)
        if len(part) == _CHUNK:
            yield stacked()
            part = []
    if part:
        yield stacked()


@jax.jit
def _fits(model: Model, batch: dict[str, Array]) -> tuple[Array, Array]:
    return jax.lax.map(lambda example: _fit(model, example), batch)


def _fit(model: Model, example: dict[str, Array]) -> tuple[Array, Array]:
    image, truth = example["picture"].astype(jnp.float32), example["points"]
    pose, shape = initial_state(model, image, example["box"])
    pose, shape = moved(model, pose, shape, example["moved"], jax.random.key(example["seed"]))
    result = read_off(model, fit_from(model, image, pose, shape, model.defaults))
    at = (result.pose, result.shape, result.landmark_likelihood)
    eyes = jnp.linalg.norm(truth[OUTER_EYES[0]] - truth[OUTER_EYES[1]])
    errors = 100 * jnp.linalg.norm(result.landmarks - truth, axis=-1) / eyes
    return characteristics(model.pdm, *at), errors


def moved(
    model: Model, pose: Pose, shape: Float[Array, " m"], far: Any, key: Array
) -> tuple[Pose, Float[Array, " m"]]:
    """A start moved at random, by more the larger `far`: from about 1 on, fits go wrong."""
    noise = jax.random.normal(key, (6 + len(shape),))
    width = jnp.ptp(model.pdm.mean[:, 0]) * pose.scale
    away = Pose(
        pose.scale * jnp.exp(0.35 * far * noise[0]),
        retract(pose.matrix, 0.5 * far * noise[1:4]),
        pose.translation + 0.25 * far * width * noise[4:6],
    )
    return away, clamp(model.pdm, shape + far * noise[6:] * jnp.sqrt(model.pdm.eigenvalues))
