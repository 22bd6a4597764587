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
from jclnf.train._examples import TURN, Batch, Example, Examples, turn, warped
from jclnf.train._faces import Faces
from jclnf.train._validation import map_chunks

TRIAL_SIZE = 160
"""Side in pixels of the images that faces are fitted in."""
MARGIN = (2.0, 3.2)
"""Their side in mean sides of the box: a range to draw from."""
KINDS = {"box": 0.42, "start": 0.18, "beside": 0.1, "sized": 0.14, "nothing": 0.16}
"""Parts of the examples: boxes that are off, a little or so far that no fit finds back; starts of
wrong pose and shape; boxes beside the face; boxes of quite another size; images of no face."""

_AHEAD = 64  # examples that are made before they are taken


@dataclasses.dataclass(frozen=True)
class FitExamples:
    """Makes images of faces with boxes and starts that a fit succeeds or fails from.

    Attributes:
        faces: annotated faces.
        mirror: `(n,)` index of each landmark's mirror image.
        kinds: parts of the examples, as in `KINDS`; "given" are boxes as a detector gives them.
    """

    faces: Faces
    mirror: np.ndarray
    kinds: Mapping[str, float] = dataclasses.field(default_factory=KINDS.copy)

    def __len__(self) -> int:
        return len(self.faces)

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`image` (TRIAL_SIZE, TRIAL_SIZE) uint8; `box` (4,) and `points` (n, 2) in its pixels, NaN
        where there is no face; how `far` the start is moved, and the `seed` of that."""
        image, points = self.faces.images[face], self.faces.points[face]
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            points = points[self.mirror] * [-1, 1] + [image.shape[1] - 1, 0]
        kind = str(rng.choice(list(self.kinds), p=list(self.kinds.values())))
        low, high = points.min(0), points.max(0)
        if kind == "nothing":
            image, points = no_face(image, rng), np.full_like(points, np.nan)
        centre, extent = _box(kind, (low + high) / 2, high - low, rng)
        any_way_up = kind != "given" and rng.random() < 0.1
        angle = rng.uniform(-np.pi, np.pi) if any_way_up else rng.normal(0, TURN)
        step = rng.uniform(*MARGIN) * extent.mean() / TRIAL_SIZE
        change = step * turn(angle)
        pad = max(image.shape)
        beyond: Any = rng.choice(["constant", "edge", "reflect"])
        seen = warped(np.pad(image, pad, mode=beyond), centre + pad, change, TRIAL_SIZE)
        middle = (TRIAL_SIZE - 1) / 2
        return {
            "image": augment(seen, rng) if rng.random() < 0.5 else seen,
            "box": np.concatenate([middle - extent / step / 2, extent / step]).astype(np.float32),
            "points": ((points - centre) @ np.linalg.inv(change).T + middle).astype(np.float32),
            "far": np.float32(rng.uniform() if kind == "start" else 0.0),
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


def no_face(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image `(h, w)` uint8 of no face: noise of some coarseness and contrast, or what is in
    `image`, in disorder."""
    height, width = image.shape
    tiles = int(rng.integers(5, 9))  # a face is larger than two of them
    h, w = height // tiles, width // tiles
    if rng.random() < 0.4 and min(h, w) > 0:
        blocks = image[: h * tiles, : w * tiles].reshape(tiles, h, tiles, w)
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


def repeated(examples: Examples, each: int, *, seed: int, threads: int = 2) -> Iterator[Example]:
    """`each` examples of each face; what they are follows from the seed alone."""

    def one(at: tuple[int, int]) -> Example:
        return examples(at[1], np.random.default_rng([seed, *at]))

    with ThreadPoolExecutor(threads) as pool:
        for repeat in range(each):
            for first in range(0, len(examples), _AHEAD):
                several = range(first, min(first + _AHEAD, len(examples)))
                yield from pool.map(one, [(repeat, face) for face in several])


class Fits(NamedTuple):
    """Fits, and how far off they were."""

    given: Float[np.ndarray, "b q"]
    """Inputs of the confidence, see `jclnf.fitting.characteristics`."""
    errors: Float[np.ndarray, "b n"]
    """Distance of each landmark from the truth in % of the eye distance; NaN without a face."""

    @property
    def error(self) -> Float[np.ndarray, " b"]:
        """Mean over the landmarks."""
        return self.errors.mean(axis=1)


def fits_of(model: Model, examples: Iterable[Example]) -> Fits:
    """Fit each example, on all of JAX's devices. Fits that are not finite are left out."""
    given, errors = map_chunks(_fits, model, examples, 64)
    finite = np.isfinite(given).all(axis=1)
    return Fits(given[finite], errors[finite])


@jax.jit
def _fits(model: Model, batch: Batch) -> tuple[Array, Array]:
    return jax.lax.map(lambda example: _fit(model, example), batch)


def _fit(model: Model, example: Batch) -> tuple[Array, Array]:
    image, truth = example["image"].astype(jnp.float32), example["points"]
    pose, shape = initial_state(model, image, example["box"])
    key = jax.random.key(example["seed"])
    pose, shape = perturbed_start(model, pose, shape, example["far"], key)
    result = read_off(model, fit_from(model, image, pose, shape, model.defaults))
    at = (result.pose, result.shape, result.landmark_likelihood)
    eyes = jnp.linalg.norm(truth[OUTER_EYES[0]] - truth[OUTER_EYES[1]])
    errors = 100 * jnp.linalg.norm(result.landmarks - truth, axis=-1) / eyes
    return characteristics(model.pdm, *at), errors


def perturbed_start(
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
