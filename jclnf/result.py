"""What a fit gives back."""

import enum

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jclnf.pdm import Pose


class FitStatus(enum.IntEnum):
    """How a fit ended; `message` says it in a sentence."""

    CONVERGED = 0
    ITERATION_LIMIT = 1
    FACE_TOO_SMALL = 2
    DIVERGED = 3
    NOT_FINITE = 4

    @property
    def message(self) -> str:
        """The status in a sentence."""
        return _MESSAGES[self]

    @property
    def ok(self) -> bool:
        """Whether the landmarks are a fit to be used."""
        return self in (FitStatus.CONVERGED, FitStatus.ITERATION_LIMIT)


_MESSAGES = {
    FitStatus.CONVERGED: "The fit converged.",
    FitStatus.ITERATION_LIMIT: "The fit used all its iterations; it was still moving a little.",
    FitStatus.FACE_TOO_SMALL: (
        "The face became too small to fit (under 0.25 pixels per millimetre); "
        "use a larger picture of it, or a better start."
    ),
    FitStatus.DIVERGED: (
        "The fit left its start: the face moved away by more than its own size, or grew or "
        "shrank beyond a factor of three; check the box."
    ),
    FitStatus.NOT_FINITE: (
        "The fit met numbers that are not finite; check the image, the box and the model."
    ),
}


class Trace(eqx.Module):
    """The course of a fit. Axes: fitted scale (`s`), pass (rigid, non-rigid), iteration (`t`).

    Iterations that were not performed hold zeros.
    """

    performed: Bool[Array, "s 2 t"]
    """Whether the iteration took place."""
    mean_shift: Float[Array, "s 2 t"]
    """Norm of all landmarks' mean shifts together, in response-map pixels."""
    update: Float[Array, "s 2 t"]
    """Norm of the parameter update."""
    movement: Float[Array, "s 2 t"]
    """By how much the update moved the shape: norm over all coordinates, in image pixels."""
    likelihood: Float[Array, "s 2 t"]
    """Mean log response of the visible landmarks at the start of the iteration."""
    peak_offset: Float[Array, "s 2 t n 2"]
    """From each landmark (at the start of the iteration) to the peak of its response map, (x, y)
    in response-map pixels; 0 for invisible landmarks."""
    view: Int[Array, " s"]
    """The view whose experts were used."""
    visible: Bool[Array, "s n"]
    """Whether that view shows the landmark."""
    peak_from_centre: Float[Array, "s n 2"]
    """From the centre of each response map (where the landmark stood when the scale began) to its
    peak, (x, y) in response-map pixels; 0 for invisible landmarks."""


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

    def shifted(self, offset: ArrayLike) -> "FitResult":
        """The same face in an image whose origin lies at `-offset` (x, y): undoes a crop."""
        offset = jnp.asarray(offset, self.landmarks.dtype)
        return eqx.tree_at(
            lambda result: (result.landmarks, result.pose.translation),
            self,
            (self.landmarks + offset, self.pose.translation + offset),
        )
