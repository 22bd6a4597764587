"""A model whose fit is known beforehand: experts that look for what an image really shows."""

import dataclasses
import functools
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jclnf.experts import CCNF
from jclnf.fitting import Model
from jclnf.fitting._scales import reference_shape
from jclnf.geometry import (
    PDM,
    Pose,
    invert_similarity,
    project,
    sample_areas,
    similarity_between,
)
from jclnf.params import FitParams, to_device

SCALINGS = (0.5, 1.0)
SUPPORT = 11


def random_pdm(n: int = 20, m: int = 4, *, seed: int = 0) -> PDM:
    """A shape of about 100 mm with smooth modes of a few millimetres."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(-50, 50, (n, 3)) * [1, 1, 0.5]
    components = np.linalg.qr(rng.standard_normal((3 * n, m)))[0].reshape(n, 3, m)
    return PDM(
        to_device(mean - mean.mean(0), np.float32),
        to_device(components, np.float32),
        to_device(np.linspace(200.0, 20.0, m), np.float32),
    )


def random_pose(seed: int = 0, *, scale: float = 1.1, turn: float = 0.3) -> Pose:
    rng = np.random.default_rng(seed)
    return jax.jit(Pose.from_euler)(
        to_device(scale, np.float32),
        to_device(rng.uniform(-turn, turn, 3), np.float32),
        to_device(rng.uniform(110, 130, 2), np.float32),
    )


class Planted(NamedTuple):
    """A model, an image, and the pose, shape and landmarks that its experts look for."""

    model: Model
    image: np.ndarray
    pose: Pose
    shape: jnp.ndarray
    landmarks: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """The extent of the true landmarks."""
        low, high = self.landmarks.min(0), self.landmarks.max(0)
        return np.concatenate([low, high - low]).astype(np.float32)


def planted(*, seed: int = 2, views: int = 2, size: int = 240) -> Planted:
    """A textured image, and experts that match it around the landmarks of one pose and shape.

    The second view never applies, has other weights, and does not show landmark 0. It is the same
    one in all modules, and so is what fits prepare of its model.
    """
    return _planted(seed, views, size, jax.config.jax_enable_x64)


@functools.cache
def _planted(seed: int, views: int, size: int, precise: bool) -> Planted:
    del precise
    rng = np.random.default_rng(seed)
    pdm = random_pdm(seed=seed)
    n = pdm.n_landmarks
    image = cv2.GaussianBlur(rng.uniform(0, 255, (size, size)).astype(np.float32), (0, 0), 3.5)
    image = np.clip((image - image.mean()) * 9 + 128, 0, 255).astype(np.float32)
    pose = random_pose(seed, turn=0.08)
    shape = to_device(rng.normal(0, 0.5, pdm.n_modes) * np.sqrt(pdm.eigenvalues), np.float32)
    landmarks = jax.jit(project)(pdm, pose, shape)

    scales, neurons = len(SCALINGS), 2
    weights = rng.standard_normal((scales, views, n, neurons, SUPPORT, SUPPORT)) * 0.3
    experts = CCNF.create(
        scalings=SCALINGS,
        weights=weights,
        norm_weight=np.full((scales, views, n, neurons), 1.5),
        bias=np.full((scales, views, n, neurons), -9.0),
        alpha=np.full((scales, views, n, neurons), [1.0, 0.01]),
        beta=np.full((scales, views, n, 1), 0.3),
        components={k: np.tile(laplacian(k), (scales, 1, 1, 1)) for k in (7, 9)},
        centres=np.array([[[0, 0, 0], [0, 1.5, 0]][:views]] * scales),
        visible=np.ones((scales, views, n), bool),
        confidence=rng.uniform(0.3, 0.7, (scales, views, n)),
    )
    model = Model(pdm, experts, default_params(), "planted")

    @jax.jit
    def seen(model: Model, image: jax.Array, k: jax.Array) -> jax.Array:
        frame = reference_shape(model, shape, k)
        to_image = invert_similarity(similarity_between(landmarks, frame))
        return sample_areas(image, landmarks, to_image, SUPPORT)

    for k in range(scales):
        patches = np.asarray(seen(model, jnp.asarray(image), jnp.int32(k)))
        patches = patches - patches.mean((1, 2), keepdims=True)
        weights[k, 0, :, 0] = 10 * patches / np.linalg.norm(patches, axis=(1, 2), keepdims=True)
    visible = np.ones((scales, views, n), bool)
    visible[:, 1:, 0] = False
    experts = CCNF(
        **{
            **{f.name: getattr(experts, f.name) for f in dataclasses.fields(experts)},
            "weights": to_device(weights, np.float32),
            "visible": to_device(visible),
        }
    )
    model = Model(pdm, experts, default_params(), "planted")
    return Planted(model, image, pose, shape, np.asarray(landmarks))


def uncropped(image: np.ndarray, side: int = 256) -> jnp.ndarray:
    """The image as fits see it that crop it to this size: a JAX array, which no box crops to
    another size. So fits with any box are one program."""
    height, width = image.shape
    return jnp.asarray(np.pad(image, ((0, side - height), (0, side - width))))


def default_params(**changes: object) -> FitParams:
    return FitParams(
        regularisation=jnp.array([5.0, 1.0]),
        kernel_width=jnp.array([1.5, 1.5]),
        weight_factor=jnp.array([0.0, 0.0]),
        windows=(9, 7),
        iterations=10,
    ).replace(**changes)


def laplacian(window: int) -> np.ndarray:
    """`(1, 1, k*k, k*k)`: each pixel's coupling to its neighbours, the natural field component."""
    index = np.arange(window**2).reshape(window, window)
    matrix = np.zeros((window**2, window**2))
    for a, b in [
        *zip(index[:, 1:].ravel(), index[:, :-1].ravel(), strict=True),
        *zip(index[1:].ravel(), index[:-1].ravel(), strict=True),
    ]:
        matrix[a, b] = matrix[b, a] = -1
    return (np.diag(-matrix.sum(0)) + matrix)[None, None]
