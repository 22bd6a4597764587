"""What a face is described by, as a pure function of image and landmarks: `exact` arithmetic.

Where OpenFace rounds (positions to 1/32 px, the aligned face to whole grey levels) nothing is
rounded here, which moves an intensity by some hundredths. The descriptor is continuous in image and
landmarks but where

- a pixel comes under the mask, or leaves it: its grey level is then 0, or not;
- a gradient passes from one of 18 orientations to the next: its vote changes bins;
- another of the three colours becomes the steepest: it is its orientation that counts.

Derivatives are those between such places, and exist everywhere but where a histogram meets its
limit, and where a gradient vanishes (0 is taken there).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from jclnf.action_units._align import RAISE, RAISED, RIGID
from jclnf.action_units._fhog import BINS, CELL, DIRECTIONS, GRID, normalised
from jclnf.action_units._model import SCALE, SIDE, ActionUnits
from jclnf.errors import ImageError
from jclnf.fitting import fit_points
from jclnf.geometry import (
    PDM,
    apply_similarity,
    invert_similarity,
    sample_areas,
    similarity_between,
)

_MIDDLE = SIDE // 2


def describe(
    model: ActionUnits,
    image: Real[Array, "h w 3"] | np.ndarray,
    landmarks: Float[Array, "68 2"] | np.ndarray,
) -> Float[Array, " d"]:
    """The numbers of a face that predictors of action units take.

    Pure, in the precision of the model's shape model: `jax.jit`, `jax.vmap` and `jax.grad` apply.

    Args:
        model: from `load_action_units`.
        image: colours in OpenCV's order (blue, green, red), 0-255.
        landmarks: (x, y) in pixels of the image, by OpenFace's convention.

    Returns:
        4464 numbers of the appearance (cell rows, cell columns, 31 channels), 238 of the geometry.

    Raises:
        ImageError: no image in colours, or other than 68 landmarks.
    """
    check_face(image, landmarks)
    pdm = model.pdm
    image = jnp.asarray(image, pdm.mean.dtype)
    points = jnp.asarray(landmarks, pdm.mean.dtype)
    pose, shape = fit_points(pdm, points, jnp.ones(len(points), bool))
    face = aligned_face(pdm, model.triangles, image, points, pose.translation)
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
    return jnp.concatenate([(pdm.components @ shape).T.reshape(-1), shape])


def aligned_face(
    pdm: PDM,
    triangles: np.ndarray,
    image: Float[Array, "h w 3"],
    landmarks: Float[Array, "68 2"],
    translation: Float[Array, "2"],
) -> Float[Array, "s s 3"]:
    """The face turned upright, `SIDE` pixels of 1/`SCALE` mm, 0 outside of its mask.

    Args:
        pdm, triangles: of the model.
        image, landmarks: see `describe`.
        translation: what goes to the middle, image pixels.
    """
    reference = SCALE * pdm.mean[:, :2]
    to_face = similarity_between(landmarks[RIGID], reference[RIGID])
    to_image = invert_similarity(to_face)
    # The middle of the square that is sampled lies half a pixel before pixel `_MIDDLE`.
    middle = translation - apply_similarity(to_image, jnp.full(2, 0.5, landmarks.dtype))

    def sampled(channel: Float[Array, "h w"]) -> Float[Array, "s s"]:
        return sample_areas(channel, middle[None], to_image, SIDE)[0]

    face = jax.vmap(sampled, in_axes=2, out_axes=2)(image)
    points = apply_similarity(to_face, landmarks - translation) + _MIDDLE
    raised = points.at[RAISED, 1].add(-RAISE)
    return jnp.where(face_mask(lax.stop_gradient(raised), triangles)[..., None], face, 0.0)


def face_mask(points: Float[Array, "68 2"], triangles: np.ndarray) -> Bool[Array, "s s"]:
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
    left, right = jnp.stack(first).min(0), jnp.stack(last).max(0)
    inside = (steps >= left[..., None]) & (steps <= right[..., None])
    return inside.any(0)


def fhog(image: Float[Array, "s s 3"]) -> Float[Array, "c c 31"]:
    """`jclnf.action_units._fhog.fhog` of an image that need not be of whole grey levels; of two
    colours that are as steep, the first counts."""
    gx = image[1:-1, 2:] - image[1:-1, :-2]
    gy = image[2:, 1:-1] - image[:-2, 1:-1]
    channel = jnp.argmax(lax.stop_gradient(gx**2 + gy**2), axis=2, keepdims=True)
    gx, gy = (jnp.take_along_axis(g, channel, 2)[..., 0] for g in (gx, gy))
    squared = gx**2 + gy**2
    steep = squared > 0
    magnitude = jnp.where(steep, jnp.sqrt(jnp.where(steep, squared, 1.0)), 0.0)
    directions = DIRECTIONS.astype(image.dtype)
    dots = lax.stop_gradient(gx[..., None] * directions[:, 0] + gy[..., None] * directions[:, 1])
    best = jnp.argmax(jnp.abs(dots), axis=2, keepdims=True)
    negative = jnp.take_along_axis(dots, best, 2) < 0
    votes = (best + negative * len(DIRECTIONS) == jnp.arange(BINS)) * magnitude[..., None]
    parts = _parts().astype(image.dtype)
    rows = jnp.einsum("yi,yxo->ixo", parts, votes, precision="highest")
    return normalised(jnp.einsum("xj,ixo->ijo", parts, rows, precision="highest"))


def _parts() -> np.ndarray:
    """Which part of its vote a pixel but the outermost gives to each cell."""
    position = (np.arange(1, SIDE - 1) + 0.5) / CELL - 0.5
    return np.maximum(0.0, 1 - np.abs(position[:, None] - np.arange(GRID)))
