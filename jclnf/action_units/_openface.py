"""What a face is described by, in OpenFace's arithmetic: the aligned face is NumPy's and OpenCV's,
on the host, since XLA contracts products and sums, which moves a rounding here and there. Where
nothing is rounded to whole numbers it is XLA's."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jclnf.action_units._align import aligned_face
from jclnf.action_units._exact import check_face
from jclnf.action_units._fhog import fhog
from jclnf.action_units._model import ActionUnits
from jclnf.errors import ImageError
from jclnf.fitting import fit_points
from jclnf.geometry import PDM
from jclnf.params import on_host


class Described:
    """A face as predictors of action units see it.

    Attributes:
        aligned: `(112, 112, 3)` uint8 (blue, green, red), 0 outside of the face.
        appearance: `(12, 12, 31)` float32.
        geometry: `(238,)` float64.
    """

    def __init__(self, aligned: np.ndarray, appearance: np.ndarray, geometry: np.ndarray) -> None:
        self.aligned, self.appearance, self.geometry = aligned, appearance, geometry

    @functools.cached_property
    def descriptor(self) -> np.ndarray:
        """Both as `(4702,)` float64."""
        return np.concatenate([self.appearance.reshape(-1).astype(np.float64), self.geometry])


def describe_openface(model: ActionUnits, image: np.ndarray, landmarks: Any) -> Described:
    """Describe a face as OpenFace does, to the byte where it is bytes.

    Args:
        model: from `load_action_units`.
        image: `(h, w, 3)` uint8 (blue, green, red).
        landmarks: `(68, 2)` pixels.

    Raises:
        ImageError: not such an image, or no landmarks of a face.
    """
    check_frame(image, landmarks)
    points = np.asarray(landmarks, np.float32)
    translation, shape = _fitted(model.pdm, points)
    if not (np.isfinite(shape).all() and (np.ptp(points, axis=0) > 0).all()):
        raise ImageError("the landmarks are not those of a face: the shape model cannot be fitted")
    mean = np.asarray(model.pdm.mean)
    aligned = aligned_face(image, points, mean, translation, model.triangles)
    return Described(aligned, np.asarray(_fhog(aligned)), geometry(model.pdm, shape))


def check_frame(image: np.ndarray, landmarks: Any) -> None:
    """As `check_face`, and the image is uint8."""
    check_face(image, landmarks)
    if image.dtype != np.uint8:
        raise ImageError(f"OpenFace's arithmetic is for uint8 images, not {image.dtype}")


def geometry(pdm: PDM, shape: np.ndarray) -> np.ndarray:
    """As of `jclnf.action_units._exact`, in double precision."""
    components = np.asarray(pdm.components, np.float64)
    parameters = shape.astype(np.float64)
    return np.concatenate([(components @ parameters).T.reshape(-1), parameters])


def _fitted(pdm: PDM, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Translation and parameters of the shape model fitted to landmarks.

    OpenFace's fit may take a thousand steps where `fit_points` takes 40 at most; of all the faces
    recorded none took more than 13.
    """
    translation, shape = on_host(_fit(pdm, points))
    return np.asarray(translation), np.asarray(shape)


@eqx.filter_jit
def _fit(pdm: PDM, points: Any) -> Any:
    pose, shape = fit_points(pdm, points, jnp.ones(len(points), bool))
    return pose.translation, shape


@jax.jit
def _fhog(aligned: Any) -> Any:
    return fhog(aligned.astype(jnp.float32))
