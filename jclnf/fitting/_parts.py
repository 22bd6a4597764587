"""Part models: the inner face and the eyes, refined by shape models and experts of their own.

Sources: Baltrusaitis, Robinson, Morency, "OpenFace: an open source facial behavior analysis
toolkit" (WACV 2016), for parts that are fitted on their own; Wood and others, "Rendering of eyes
for eye-shape registration and gaze estimation" (ICCV 2015), for models of the eye.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from jclnf.fitting._from_points import fit_points
from jclnf.fitting._mapping import map_faces
from jclnf.fitting._model import Model, Part
from jclnf.fitting._result import FitResult, PartResult
from jclnf.fitting._scales import fit_from
from jclnf.geometry import Pose, project, turned3d
from jclnf.params import FitParams

LARGEST_UPSAMPLING = 0.9
"""A part is fitted to faces larger than this part of its experts' coarsest scaling: they would see
little in images enlarged by more."""


def fit_parts(
    model: Model, image: Real[Array, "h w"] | np.ndarray, result: FitResult, params: FitParams
) -> FitResult:
    """Refine a fitted face by the part models of its model.

    Each part starts from the pose and shape of its own model (`fit_points`) that come
    closest to the face's landmarks, and is fitted from there with its own settings
    (`part.model.defaults`) if the face is large enough (`LARGEST_UPSAMPLING`). If any part was
    fitted, all parts' landmarks replace the face's, in the order of the parts, and the face's pose
    and shape become those that come closest to them. All parts see the landmarks of the face as
    they were.

    A pure function that is neither compiled nor checks its inputs. Parts of the same kind, such as
    the two eyes, are compiled once. Where no part is
    fitted, that work is skipped, but not under `vmap`.

    Args:
        model: of its `parts`, which may be prepared or not.
        image: grey levels 0-255.
        result: a fit of the face in that image.
        params: of which the parts take the arithmetic.

    Returns:
        The result with its landmarks, pose, shape and parts replaced; everything else, the
        likelihood too, remains that of the face's own fit.
    """
    if not model.parts:
        return result
    image = jnp.asarray(image)
    parts: dict[str, PartResult] = {}
    for group in _alike(model.parts):
        parts |= _fit_alike(group, image, result, params)
    landmarks = result.landmarks
    for part in model.parts:
        replaced = parts[part.name].landmarks[jnp.array(part.part_index)]
        landmarks = landmarks.at[jnp.array(part.main_index)].set(replaced)
    present = jnp.ones(len(landmarks), bool)
    any_fitted = jnp.any(jnp.stack([part.fitted for part in parts.values()]))
    pose, shape = lax.cond(
        any_fitted,
        lambda: fit_points(model.pdm, landmarks, present),
        lambda: (result.pose, result.shape),
    )
    landmarks = jnp.where(any_fitted, project(model.pdm, pose, shape), result.landmarks)
    return dataclasses.replace(
        result,
        landmarks=landmarks,
        landmarks3d=turned3d(model.pdm, pose, shape),
        pose=pose,
        shape=shape,
        parts=parts,
    )


def _alike(parts: Sequence[Part]) -> list[list[Part]]:
    """Runs of parts whose models differ only in their numbers."""
    return [list(group) for _, group in itertools.groupby(parts, key=_kind)]


def _kind(part: Part) -> Any:
    leaves, structure = jax.tree.flatten(_contents(part))
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return structure, shapes, len(part.part_index)


def _contents(part: Part) -> Any:
    return part.model.pdm, part.model.experts, part.model.defaults


def _fit_alike(
    parts: Sequence[Part], image: Real[Array, "h w"], result: FitResult, params: FitParams
) -> dict[str, PartResult]:
    n = parts[0].model.pdm.n_landmarks
    given = [_given(part, n, result.landmarks) for part in parts]
    batch = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *[(_contents(part), *rest) for part, rest in zip(parts, given, strict=True)],
    )
    large = result.pose.scale > LARGEST_UPSAMPLING * parts[0].model.scalings[0]

    same = {"arithmetic": params.arithmetic, "derivatives": params.derivatives}

    def one(inputs: Any) -> PartResult:
        (pdm, experts, settings), points, present = inputs
        model = Model(pdm, experts, settings.replace(**same))
        pose, shape = fit_points(pdm, points, present)
        pose, shape = lax.cond(
            large,
            lambda: _pose_and_shape(fit_from(model, image, pose, shape, model.defaults)),
            lambda: (pose, shape),
        )
        return PartResult(
            landmarks=project(pdm, pose, shape),
            landmarks3d=turned3d(pdm, pose, shape),
            pose=pose,
            shape=shape,
            fitted=large,
        )

    if len(parts) == 1:
        fits = [one(jax.tree.map(lambda leaf: leaf[0], batch))]
    else:
        stacked = map_faces(one, batch)
        fits = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(parts))]
    return {part.name: fit for part, fit in zip(parts, fits, strict=True)}


def _given(
    part: Part, n: int, landmarks: Float[Array, "main 2"]
) -> tuple[Float[Array, "n 2"], Bool[Array, " n"]]:
    """The part's landmarks as far as the face has them, and which these are."""
    at = jnp.array(part.part_index)
    taken = landmarks[jnp.array(part.main_index)]
    points = jnp.zeros((n, 2), landmarks.dtype).at[at].set(taken)
    return points, jnp.zeros(n, bool).at[at].set(True)


def _pose_and_shape(result: FitResult) -> tuple[Pose, Float[Array, " m"]]:
    return result.pose, result.shape
