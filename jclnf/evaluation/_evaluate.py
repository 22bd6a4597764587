"""A model tried on annotated faces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jclnf.annotations import AnnotatedFace
from jclnf.errors import AnnotationError, BoxError, JclnfError
from jclnf.evaluation._metrics import Summary, summarise
from jclnf.fitting import Model, fit_images, fit_points
from jclnf.geometry import PDM, tight_box
from jclnf.images import Crop, crop, read_image
from jclnf.params import FitParams

CHUNK = 64
"""Most faces whose images are held at a time."""

NOT_READ = -1
"""In place of a `FitStatus`, of a face whose image or box could not be used."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Fits of annotated faces, each array with an axis for the faces in the order given."""

    landmarks: np.ndarray
    """`(b, n, 2)` pixels; NaN where a face was not fitted."""
    truth: np.ndarray
    """`(b, n, 2)` pixels, as annotated."""
    status: np.ndarray
    """`(b,)` a `FitStatus`, or `NOT_READ`."""
    likelihood: np.ndarray
    """`(b,)`; NaN where a face was not fitted."""
    yaw: np.ndarray
    """`(b,)` radians, of the model's shape fitted to the annotation, so that it does not depend on
    the fit."""
    problems: dict[int, str]
    """Why faces were not fitted, by their index."""

    def summary(self) -> Summary:
        """Statistics of the errors."""
        return summarise(self.landmarks, self.truth, self.yaw)


def evaluate(
    model: Model,
    faces: Sequence[AnnotatedFace],
    params: FitParams | None = None,
    *,
    boxes: Sequence[Any] | None = None,
    init: Any = None,
    read: Callable[[Path], np.ndarray] = read_image,
    on_problem: Callable[[int, str], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Fit annotated faces, from their images on.

    A face whose image cannot be read, or whose box cannot be used, is not fitted, and the others
    still are.

    Args:
        model: as for `jclnf.fit_images`.
        faces: as `read_annotations` gives them, with as many landmarks as the model.
        params: settings; `model.defaults` if not given.
        boxes: (x, y, w, h) for each face in pixels of its image, or None for one that has none.
            Without, a face's own box or, if it has none, the extent of its landmarks.
        init: where the fits start, see `jclnf.fit_images`.
        read: gives the grey image `(h, w)` of an image file.
        on_problem: called with the index of a face that cannot be fitted, and the reason.
        on_progress: called after each chunk with the number of faces done in it.

    Raises:
        AnnotationError: the faces have other numbers of landmarks than the model.
        BoxError: there are not as many boxes as faces.
        ParamsError: as `jclnf.fit`.
    """
    n = model.pdm.n_landmarks
    wrong = next((face for face in faces if len(face.landmarks) != n), None)
    if not faces or wrong is not None:
        found = "no faces" if wrong is None else f"{len(wrong.landmarks)} in {wrong.image}"
        raise AnnotationError(
            f"the model {model.name} has {n} landmarks, the annotation {found}: evaluate it on "
            "data of its own scheme"
        )
    if boxes is None:
        boxes = [start_box(face) for face in faces]
    if len(boxes) != len(faces):
        raise BoxError(f"{len(boxes)} boxes for {len(faces)} faces")

    landmarks = np.full((len(faces), n, 2), np.nan)
    status, likelihood = np.full(len(faces), NOT_READ), np.full(len(faces), np.nan)
    problems: dict[int, str] = {}
    for chunk in np.array_split(np.arange(len(faces)), -(-len(faces) // CHUNK)):
        crops: dict[int, Crop] = {}
        for index in chunk.tolist():
            try:
                crops[index] = _crop_of(faces[index], boxes[index], read)
            except JclnfError as e:
                problems[index] = str(e)
                if on_problem is not None:
                    on_problem(index, str(e))
        if crops:
            fits = _fit(model, list(crops.values()), params, init)
            at = list(crops)
            landmarks[at], status[at], likelihood[at] = fits
        if on_progress is not None:
            on_progress(len(chunk))
    truth = np.stack([face.landmarks for face in faces])
    return Evaluation(landmarks, truth, status, likelihood, yaws(model.pdm, truth), problems)


def start_box(face: AnnotatedFace) -> np.ndarray:
    """A face's own box, or the extent of its landmarks if it has none."""
    return tight_box(face.landmarks) if face.box is None else face.box


def yaws(pdm: PDM, landmarks: Any) -> np.ndarray:
    """The yaw of heads with the given landmarks `(b, n, 2)`, `(b,)` radians.

    That of the shape model fitted to them, see `jclnf.fit_points`.
    """
    points = jnp.asarray(landmarks, pdm.mean.dtype)
    return np.asarray(_yaws(pdm, points), np.float64)


@eqx.filter_jit
def _yaws(pdm: PDM, points: jax.Array) -> jax.Array:
    present = jnp.ones(points.shape[1], bool)
    return lax.map(lambda face: fit_points(pdm, face, present)[0].rotation[1], points)


def _crop_of(face: AnnotatedFace, box: Any, read: Callable[[Path], np.ndarray]) -> Crop:
    if box is None:
        raise BoxError(f"{face.image}: there is no box for it")
    image = read(face.image)
    try:
        return crop(image, box)
    except JclnfError as e:
        raise BoxError(f"{face.image}: {e}") from e


def _fit(
    model: Model, crops: list[Crop], params: FitParams | None, init: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Landmarks, status and likelihood."""
    images, boxes = [crop.image for crop in crops], np.stack([crop.box for crop in crops])
    result = fit_images(model, images, boxes, params, init=init)
    offsets = np.stack([crop.offset for crop in crops])
    points = np.asarray(result.landmarks, np.float64) + offsets[:, None]
    return points, np.asarray(result.status), np.asarray(result.likelihood)
