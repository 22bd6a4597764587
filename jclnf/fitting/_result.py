"""Results of fits."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jclnf.fitting._meanshift import model_likelihood
from jclnf.geometry import Pose, norm


class FitStatus(enum.IntEnum):
    """How a fit ended; `FitResult.message` says what that means and what to do."""

    CONVERGED = 0
    ITERATION_LIMIT = 1
    FACE_TOO_SMALL = 2
    DIVERGED = 3
    NOT_FINITE = 4
    NOTHING_SEEN = 5

    @property
    def ok(self) -> bool:
        """Whether the landmarks are a fit to be used."""
        return self in (FitStatus.CONVERGED, FitStatus.ITERATION_LIMIT)


_MESSAGES = {
    FitStatus.CONVERGED: "The face was fitted: the fit converged.",
    FitStatus.ITERATION_LIMIT: "The face was fitted, in all iterations that its settings provide.",
    FitStatus.FACE_TOO_SMALL: (
        "The face became too small to fit: it has too few pixels per millimetre for the model's "
        "coarsest scale; use a larger image of it, or a better start."
    ),
    FitStatus.DIVERGED: (
        "The fit left its start: the face moved away by more than its own size, or grew or "
        "shrank beyond a factor of three; check the box."
    ),
    FitStatus.NOT_FINITE: (
        "The fit met numbers that are not finite; check the image, the box, the settings and the "
        "model."
    ),
    FitStatus.NOTHING_SEEN: (
        "The image has one and the same grey level at all landmarks, or they lie outside it; "
        "check the image and the box."
    ),
}


class Trace(eqx.Module):
    """The course of a fit. Axes: fitted scale (`s`), pass (rigid, non-rigid), iteration (`t`).

    Pixels are those of response maps if not said otherwise. Iterations that were not performed
    hold zeros in all that is derived from them.
    """

    performed: Bool[Array, "s 2 t"]
    """Whether the iteration took place."""
    positions: Float[Array, "s 2 t+1 n 2"]
    """Each landmark at the start of the iteration, and at the end of the last one: (x, y) from the
    centre of its response map."""
    shifts: Float[Array, "s 2 t n 2"]
    """Each landmark's mean shift, (x, y)."""
    likelihoods: Float[Array, "s 2 t n"]
    """Kernel-weighted response of each landmark at the start of the iteration; 0 for invisible
    ones."""
    updates: Float[Array, "s 2 t _"]
    """The parameters' update: scale, a small turn, translation and the shape's; the rigid pass has
    zeros for that."""
    view: Int[Array, " s"]
    """The view whose experts were used."""
    visible: Bool[Array, "s n"]
    """Whether that view shows the landmark."""
    peak_from_centre: Float[Array, "s n 2"]
    """From the centre of each response map (where the landmark stood when the scale began) to its
    peak, (x, y); 0 for invisible landmarks."""
    pixel: Float[Array, " s"]
    """Side of a map's pixel in image pixels."""

    @property
    def mean_shift(self) -> Float[ArrayLike, "*b s 2 t"]:
        """Norm of all landmarks' mean shifts together."""
        return self._derived(lambda trace: norm(trace.shifts, 2))

    @property
    def update(self) -> Float[ArrayLike, "*b s 2 t"]:
        """Norm of the parameter update."""
        return self._derived(lambda trace: norm(trace.updates, 1))

    @property
    def movement(self) -> Float[ArrayLike, "*b s 2 t"]:
        """By how much the update moved the shape: norm over all coordinates, in image pixels."""
        return self._derived(
            lambda trace: norm(jnp.diff(trace.positions, axis=-3), 2) * trace.pixel[..., None, None]
        )

    @property
    def likelihood(self) -> Float[ArrayLike, "*b s 2 t"]:
        """Mean log response of the visible landmarks at the start of the iteration."""
        return self._derived(
            lambda trace: model_likelihood(trace.likelihoods, trace.visible[..., None, None, :])
        )

    @property
    def peak_offset(self) -> Float[ArrayLike, "*b s 2 t n 2"]:
        """From each landmark (at the start of the iteration) to the peak of its response map,
        (x, y); 0 for invisible landmarks."""

        def offsets(trace: Trace) -> Array:
            peaks = trace.peak_from_centre[..., None, None, :, :]
            visible = trace.visible[..., None, None, :, None]
            return jnp.where(visible, peaks - trace.positions[..., :-1, :, :], 0.0)

        return self._derived(offsets)

    def _derived(self, compute: Callable[["Trace"], Array]) -> Any:
        """What is derived from arrays; NumPy's from NumPy's, in their precision."""
        if isinstance(self.performed, np.ndarray):
            with jax.enable_x64(self.positions.dtype == np.float64):
                return np.asarray(jax.tree.map(jnp.asarray, self)._derived(compute))
        numbers = compute(self)
        beyond = range(self.performed.ndim, numbers.ndim)
        return jnp.where(jnp.expand_dims(self.performed, list(beyond)), numbers, 0.0)

    @staticmethod
    def empty(landmarks: int, modes: int, dtype: Any) -> "Trace":
        """The trace of a fit of which nothing was kept: it has no scales."""

        def none(*shape: int, dtype: Any = dtype) -> Array:
            return jnp.zeros((0, *shape), dtype)

        return Trace(
            performed=none(2, 0, dtype=bool),
            positions=none(2, 1, landmarks, 2),
            shifts=none(2, 0, landmarks, 2),
            likelihoods=none(2, 0, landmarks),
            updates=none(2, 0, 6 + modes),
            view=none(dtype=jnp.int32),
            visible=none(landmarks, dtype=bool),
            peak_from_centre=none(landmarks, 2),
            pixel=none(),
        )


class PartResult(eqx.Module):
    """A part of a fitted face; fields are as in `FitResult`."""

    landmarks: Float[Array, "n 2"]
    landmarks3d: Float[Array, "n 3"]
    pose: Pose
    shape: Float[Array, " m"]
    fitted: Bool[Array, ""]
    """Whether the part was fitted to the image; if not, it follows from the face's landmarks."""


class FitResult(eqx.Module):
    """One fitted face. Derivatives go through all of its floating-point arrays."""

    landmarks: Float[Array, "n 2"]
    """Landmarks (x, y), image pixels."""
    landmarks3d: Float[Array, "n 3"]
    """The 3D shape turned as the head is: millimetres about the model's origin, axes of the camera
    (x right, y down, z away from the viewer)."""
    pose: Pose
    """Weak-perspective pose: `pose.rotation` are (pitch, yaw, roll) in radians."""
    shape: Float[Array, " m"]
    """Shape parameters of the PDM."""
    likelihood: Float[Array, ""]
    """Mean log response of the visible landmarks; the larger, the better."""
    landmark_likelihood: Float[Array, " n"]
    """Kernel-weighted response of each landmark; 0 for invisible ones."""
    visible: Bool[Array, " n"]
    """Whether the last view shows the landmark; the others follow from the shape model alone."""
    status: Int[Array, ""]
    """A `FitStatus`."""
    trace: Trace
    parts: dict[str, PartResult] = eqx.field(default_factory=dict)
    """The parts of the face by their names, if the fit's settings ask for them."""
    confidence: Float[Array, ""] | None = None
    """How far the face is to be trusted, 0 to 1, 0 if the fit failed: the probability that it is
    right, or what OpenFace's validator says where the model has that; None without either."""
    threshold: Float[Array, ""] | None = None
    """The confidence over which a fit is a success."""
    landmark_confidence: Float[Array, " n"] | None = None
    """The probability that each landmark is off by less than a tenth of the eye distance, 0 if the
    fit failed; None if the model cannot tell."""

    covariance: Float[Array, "n 2 2"] | None = None
    """Covariance of each landmark's position (x, y), square pixels: how far it may be off, as a
    Gaussian. Not of parts. None unless `FitParams.uncertainty` asks
    for it."""

    @property
    def ok(self) -> Bool[ArrayLike, "*b"]:
        """Whether the status is one of a fit to be used, see `FitStatus.ok`."""
        return (self.status == FitStatus.CONVERGED) | (self.status == FitStatus.ITERATION_LIMIT)

    @property
    def success(self) -> Bool[ArrayLike, "*b"]:
        """Whether the fit is ok and, if there is a confidence, it is above the `threshold`."""
        if self.confidence is None or self.threshold is None:
            return self.ok
        return self.ok & (self.confidence > self.threshold)

    @property
    def message(self) -> str | tuple[str, ...]:
        """How the fit ended and, if it failed, what to do; of a batch, one message for each face.

        For people to read: in a program look at `success` and `status`. Not under `jax.jit`.
        """
        if np.ndim(self.status) > 0:
            faces = [jax.tree.map(lambda a, i=i: a[i], self) for i in range(len(self.status))]
            return tuple(face.message for face in faces)
        if self.confidence is None or self.success or not self.ok:
            return _MESSAGES[FitStatus(int(self.status))]
        return (
            f"The fit is not to be trusted (confidence {float(self.confidence):.2f}): this is no "
            "face, or the fit went wrong; check that the box is tight around a face, from the "
            "eyebrows to the chin, or give other start rotations."
        )

    def without_trace(self) -> "FitResult":
        """The result of one face with a trace of no scales, whatever its settings."""
        nothing = Trace.empty(len(self.landmarks), len(self.shape), self.landmarks.dtype)
        return dataclasses.replace(self, trace=nothing)

    def shifted(self, offset: ArrayLike) -> "FitResult":
        """The same face in an image whose origin lies at `-offset` (x, y): undoes a crop."""
        offset = jnp.asarray(offset, self.landmarks.dtype)

        def image_points(result: Any) -> list[Any]:
            faces = [result, *result.parts.values()]
            return [points for face in faces for points in (face.landmarks, face.pose.translation)]

        moved = [points + jnp.broadcast_to(offset, points.shape) for points in image_points(self)]
        return eqx.tree_at(image_points, self, moved)


def likelihood_of(fit: FitResult) -> Any:
    """The likelihood of a fit; minus infinity if it is not a number."""
    return jnp.where(jnp.isnan(fit.likelihood), -jnp.inf, fit.likelihood)
