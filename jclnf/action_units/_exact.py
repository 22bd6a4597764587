"""What a face is described by, as a pure function of image and landmarks: `exact` arithmetic.

Where OpenFace rounds (positions to 1/32 px, the aligned face to whole grey levels) nothing is
rounded here unless it is asked for, which moves an intensity by some hundredths. The descriptor is
continuous in image and landmarks but where

- a pixel comes under the mask, or leaves it: its grey level is then 0, or not;
- a gradient passes from one of 18 orientations to the next: its vote changes bins;
- another of the three colours becomes the steepest: it is its orientation that counts.

Derivatives are those between such places, and exist everywhere but where a histogram meets its
limit, and where a gradient vanishes (0 is taken there).
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from jclnf.action_units._align import RAISE, RAISED, RIGID
from jclnf.action_units._fhog import fhog
from jclnf.action_units._model import SCALE, SIDE, ActionUnits
from jclnf.errors import ImageError
from jclnf.fitting import distribute, fit_points, map_everywhere, padded, replicate
from jclnf.geometry import (
    PDM,
    apply_similarity,
    invert_similarity,
    product,
    sample_areas,
    similarity_between,
)

_MIDDLE = SIDE // 2
_LIFTS = RAISE * np.stack([np.zeros(68), np.isin(np.arange(68), RAISED)], axis=1)
"""How far up each landmark is moved for the mask."""


def describe(
    model: ActionUnits,
    image: Real[Array, "h w 3"] | np.ndarray,
    landmarks: Float[Array, "68 2"] | np.ndarray,
    *,
    rounded: bool = False,
) -> Float[Array, " d"]:
    """The numbers of a face that predictors of action units take.

    Pure, in the precision of the model's shape model: `jax.jit`, `jax.vmap` and `jax.grad` apply.

    Args:
        model: from `load_action_units`.
        image: colours in OpenCV's order (blue, green, red), 0-255.
        landmarks: (x, y) in pixels of the image, by OpenFace's convention.
        rounded: round the aligned face as OpenFace does. Derivatives are those of the face that is
            not rounded, all the same.

    Returns:
        4464 numbers of the appearance (cell rows, cell columns, 31 channels), 238 of the geometry.

    Raises:
        ImageError: no image in colours, or other than 68 landmarks.
    """
    check_face(image, landmarks)
    return _described(model.pdm, model.triangles, jnp.asarray(image), landmarks, rounded)


def estimate(
    model: ActionUnits,
    image: Real[Array, "h w 3"] | np.ndarray,
    landmarks: Float[Array, "68 2"] | np.ndarray,
    median: Any = None,
    *,
    rounded: bool = False,
) -> Float[Array, " k"]:
    """The action units of a face, before intensities are limited and presences decided
    (`ActionUnits.shown`), in the order of `model.columns`; pure as `describe`.

    Args:
        model: see `describe`.
        image: see `describe`.
        landmarks: see `describe`.
        rounded: see `describe`.
        median: `(d,)` the person's median of descriptors, see `ActionUnits.predict`.

    Raises:
        ImageError: as `describe`.
    """
    return model.predict(describe(model, image, landmarks, rounded=rounded), median)


def describe_batch(
    model: ActionUnits,
    images: Sequence[np.ndarray],
    landmarks: Sequence[np.ndarray],
    *,
    rounded: bool = False,
) -> np.ndarray:
    """`describe` of many faces, spread over all of JAX's devices.

    Use it where speed counts and derivatives do not. On a CPU, have as many devices as cores, see
    `jclnf.fit_images`. It is compiled for each number of faces and size of images.

    Args:
        model: see `describe`.
        images: `(b, h, w, 3)`, one for each face, all of one size.
        landmarks: `(b, 68, 2)`.
        rounded: see `describe`.

    Returns:
        `(b, d)`.

    Raises:
        ImageError: as `describe`; or images are not as many as faces, or of several sizes.
    """
    sizes = {np.shape(image) for image in images}
    if len(images) != len(landmarks) or len(sizes) != 1:
        raise ImageError(
            f"{len(landmarks)} faces need as many images, of one size, not {len(images)} of the "
            f"sizes {sorted(sizes)}"
        )
    check_face(images[0], landmarks[0])
    size = len(images) + -len(images) % jax.local_device_count()
    batch = tuple(np.stack(padded(items, size)) for items in (images, landmarks))
    shared = replicate((model.pdm, jnp.asarray(model.triangles)))
    return np.asarray(_batch(shared, distribute(batch), rounded))[: len(images)]


@eqx.filter_jit
def _batch(shared: Any, batch: Any, rounded: bool) -> Any:
    def one(shared: Any, face: Any) -> Any:
        (pdm, triangles), (image, landmarks) = shared, face
        return _described(pdm, triangles, image, landmarks, rounded)

    return map_everywhere(one, shared, batch)


def _described(pdm: PDM, triangles: Any, image: Any, landmarks: Any, rounded: bool) -> Any:
    points = jnp.asarray(landmarks, pdm.mean.dtype)
    pose, shape = fit_points(pdm, points, jnp.ones(len(points), bool))
    face = aligned_face(pdm, triangles, image, points, pose.translation, rounded=rounded)
    return jnp.concatenate([fhog(face).reshape(-1), geometry(pdm, shape)])


def check_face(image: Any, landmarks: Any) -> None:
    """Raise ImageError unless it is an image in colours, and 68 points."""
    size, points = np.shape(image), np.shape(landmarks)
    if len(size) != 3 or size[2] != 3 or 0 in size:
        raise ImageError(
            f"action units need an image in colours, (h, w, 3) in OpenCV's order, not {size}"
        )
    if points != (68, 2):
        raise ImageError(f"action units need the usual 68 landmarks, (68, 2), not {points}")


def geometry(pdm: PDM, shape: Float[Array, " m"]) -> Float[Array, " g"]:
    """How a shape differs from the mean (all x, all y, all z; millimetres), and its parameters."""
    return jnp.concatenate([product(pdm.components, shape).T.reshape(-1), shape])


def aligned_face(
    pdm: PDM,
    triangles: Any,
    image: Real[Array, "h w 3"],
    landmarks: Float[Array, "68 2"],
    translation: Float[Array, "2"],
    *,
    rounded: bool = False,
) -> Float[Array, "s s 3"]:
    """The face turned upright, `SIDE` pixels of 1/`SCALE` mm, 0 outside of its mask.

    Args:
        pdm, triangles: of the model.
        image, landmarks, rounded: see `describe`.
        translation: what goes to the middle, image pixels.
    """
    reference = SCALE * pdm.mean[:, :2]
    to_face = similarity_between(landmarks[RIGID], reference[RIGID])
    to_image = invert_similarity(to_face)
    # The middle of the square that is sampled lies half a pixel before pixel `_MIDDLE`.
    middle = translation - apply_similarity(to_image, jnp.full(2, 0.5, landmarks.dtype))
    face = (_sampled_and_rounded if rounded else _sampled)(image, middle, to_image)
    points = apply_similarity(to_face, landmarks - translation) + _MIDDLE
    raised = points - _LIFTS.astype(points.dtype)
    return jnp.where(face_mask(lax.stop_gradient(raised), triangles)[..., None], face, 0.0)


def _sampled(image: Any, middle: Any, to_image: Any, fixed_point: bool = False) -> Any:
    """The square of an image in colours about a point, `(SIDE, SIDE, 3)`."""

    def channel(grey: Any) -> Any:
        return sample_areas(grey, middle[None], to_image, SIDE, fixed_point=fixed_point)[0]

    return jax.vmap(channel, in_axes=2, out_axes=2)(image)


@jax.custom_jvp
def _sampled_and_rounded(image: Any, middle: Any, to_image: Any) -> Any:
    """As OpenCV's `warpAffine`; with the derivative of `_sampled`."""
    return jnp.floor(_sampled(image, middle, to_image, fixed_point=True) + 0.5)


@_sampled_and_rounded.defjvp
def _sampled_and_rounded_jvp(primals: Any, tangents: Any) -> Any:
    return _sampled_and_rounded(*primals), jax.jvp(_sampled, primals, tangents)[1]


def face_mask(points: Float[Array, "68 2"], triangles: Any) -> Bool[Array, "s s"]:
    """Which pixels lie in a triangle of the points, or on its border."""
    corners = points[triangles]
    steps = jnp.arange(SIDE, dtype=points.dtype)
    first, last = [], []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        # Where an edge crosses each row.
        (xa, ya), (xb, yb) = corners[:, a].T[..., None], corners[:, b].T[..., None]
        part = (steps - ya) / jnp.where(ya == yb, 1.0, yb - ya)
        crosses = (ya != yb) & (part >= 0) & (part <= 1)
        x = xa + part * (xb - xa)
        first.append(jnp.where(crosses, x, jnp.inf))
        last.append(jnp.where(crosses, x, -jnp.inf))
    left = jnp.ceil(jnp.stack(first).min(0))
    right = jnp.floor(jnp.stack(last).max(0))
    # Of each row, how many triangles begin at a pixel, less those that ended before it.
    begin, end = (jnp.clip(x, 0, SIDE).astype(jnp.int32) for x in (left, right + 1))
    rows = jnp.arange(SIDE)
    changes = jnp.zeros((SIDE, SIDE + 1), jnp.int32)
    changes = changes.at[rows, begin].add(1).at[rows, jnp.maximum(begin, end)].add(-1)
    return changes[:, :-1].cumsum(1) > 0
