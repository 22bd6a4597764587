"""The one interface that the fit knows of patch experts."""

from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.errors import ModelFileError, check_fields
from jclnf.geometry import product, sample_areas
from jclnf.params import EXACT, Arithmetic

CPU_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Of YNNPACK, XLA's library for CPUs, the sums alone: convolutions are faster without.
    ("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_REDUCE"),
    # As wide as vectors get. XLA takes half of that.
    ("xla_cpu_prefer_vector_width", 512),
)
"""XLA's options, by name, with which networks and neural fields are fastest on a CPU."""
SMALLEST_SCALE = 0.25
"""Pixels per millimetre under which OpenFace takes a face for too small, whatever the model."""


class GaussianResponses(eqx.Module):
    """Responses that are Gaussians over the whole plane: no window cuts them off.

    In windows they would be `maps`, up to rounding where those hold all of them. What a fit asks of
    them has a closed form.
    """

    mean: Float[Array, "n 2"]
    """(x, y) from where the landmark's window is centred, in reference pixels."""
    covariance: Float[Array, "n 2 2"]
    """In square reference pixels, positive definite."""

    def maps(self, window: int) -> Float[Array, "n k k"]:
        """The responses in windows of side `window`, each normalised within its own."""
        reach = jnp.arange(window, dtype=self.mean.dtype) - (window - 1) / 2
        x, y = (reach[None] - self.mean[:, k, None] for k in (0, 1))
        xx, xy, yy = self.covariance[:, 0, 0], self.covariance[:, 0, 1], self.covariance[:, 1, 1]
        area = xx * yy - xy**2
        along_x, along_y = (
            square[:, None] * part**2 / area[:, None] for square, part in ((yy, x), (xx, y))
        )
        both = (xy / area)[:, None, None] * y[:, :, None] * x[:, None]
        logits = both - (along_x[:, None] + along_y[:, :, None]) / 2
        return jax.nn.softmax(logits, axis=(1, 2))


Responses = Float[Array, "n k k"] | GaussianResponses
"""Maps, which are non-negative, or what stands for them."""


class PatchExperts(eqx.Module):
    """Patch experts of all scales, views and landmarks, as stacked arrays.

    The first axes of the arrays are scale (`s`), view (`v`) and landmark (`n`), so that a traced
    scale and view pick the experts of one fit. A new kind of expert implements `respond`, or, if it
    works on an area around each landmark, `AreaExperts.responses`.
    """

    together: ClassVar[int] = 1
    """How many faces of a large batch a CPU fits side by side."""
    cpu_options: ClassVar[tuple[tuple[str, Any], ...]] = ()
    """XLA's options, by name, with which programs of such fits are fastest on a CPU."""
    scalings: eqx.AbstractVar[tuple[float, ...]]
    """Reference pixels per millimetre of each scale, coarse to fine."""
    centres: eqx.AbstractVar[Float[Array, "s v 3"]]
    """Head rotation that each view stands for: Euler angles in radians."""
    visible: eqx.AbstractVar[Bool[Array, "s v n"]]
    """Whether the landmark can be seen in the view."""
    confidence: eqx.AbstractVar[Float[Array, "s v n"]]
    """How far the landmark's expert is to be trusted: the weight of its mean shift."""

    def __check_init__(self) -> None:
        where = f"{type(self).__name__} experts"
        check_fields(self, where)
        scales = len(jnp.shape(self.centres)) and jnp.shape(self.centres)[0]
        problem = self.inconsistency()
        if len(self.scalings) != scales:
            problem = f"scalings has {len(self.scalings)} numbers for {scales} scales"
        elif not all(scaling > 0 for scaling in self.scalings):
            problem = f"scalings is {self.scalings}, not positive"
        if problem is not None:
            raise ModelFileError(where, problem)

    def inconsistency(self) -> str | None:
        """A field that does not go with the others, beyond what their annotations say."""
        return None

    @property
    def smallest_scale(self) -> float:
        """Pixels per millimetre under which a face is too small to be fitted: those of the coarsest
        scale, since experts have not seen enlarged images; OpenFace's limit if that is less."""
        return min(SMALLEST_SCALE, self.scalings[0])

    @abstractmethod
    def respond(
        self,
        image: Real[Array, "h w"],
        landmarks: Float[Array, "n 2"],
        to_image: Float[Array, "2"],
        scale: Int[Array, ""],
        view: Int[Array, ""],
        window: int,
        *,
        arithmetic: Arithmetic,
    ) -> Responses:
        """Responses of one face.

        Args:
            image: grey levels.
            landmarks: where the windows are centred, (x, y) in image pixels.
            to_image: similarity `(a, b)` from the reference frame to the image.
            scale: index of the scale.
            view: index of the view.
            window: side `k` of the response map in reference pixels, static.
            arithmetic: which of OpenFace's short cuts to take; not every kind of expert has any.

        Returns:
            Non-negative maps; `[i, y, x]` says how likely landmark `i` is at pixel `(x, y)` of its
            window. Or Gaussians, which are the same whatever the window. Those of landmarks that
            the view does not show are meaningless.
        """

    def shift_weights(
        self,
        responses: Responses,
        scale: Int[Array, ""],
        view: Int[Array, ""],
        factor: Float[Array, ""],
    ) -> Float[Array, " n"]:
        """The weight of each landmark's mean shift, the diagonal of the fit's W."""
        del responses
        return landmark_weights(self.confidence[scale, view], self.visible[scale, view], factor)

    def prepare(self, windows: tuple[int, ...]) -> "PatchExperts":
        """An equivalent that has everything precomputed that these windows (by scale) allow.

        Take derivatives with respect to the experts' own parameters through this method.
        """
        del windows
        return self

    def nearest_view(self, scale: Int[Array, ""], rotation: Float[Array, "3"]) -> Int[Array, ""]:
        """The view whose centre is nearest to the rotation (Euclidean distance of Euler angles).

        The choice is piecewise constant: it has no derivative.
        """
        return jnp.argmin(jnp.sum((self.centres[scale] - rotation[None]) ** 2, axis=-1))


class AreaExperts(PatchExperts):
    """Experts that each look at the area around their landmark."""

    support: eqx.AbstractVar[int]
    """Side of the patch that an expert sees, in reference pixels."""

    @abstractmethod
    def responses(
        self,
        areas: Float[Array, "n a a"],
        scale: Int[Array, ""],
        view: Int[Array, ""],
        window: int,
        *,
        arithmetic: Arithmetic = EXACT,
    ) -> Float[Array, "n k k"]:
        """Response maps of one face.

        Args:
            areas: grey levels around each landmark, `a = k + support - 1` reference pixels wide.
            scale: index of the scale.
            view: index of the view.
            window: side `k` of the response map, static.
            arithmetic: which of OpenFace's short cuts to take; not every kind of expert has any.

        Returns:
            Non-negative maps; `[i, y, x]` says how likely landmark `i` is at pixel `(x, y)` of its
            window. Maps of landmarks that the view does not show are meaningless.
        """

    def respond(
        self,
        image: Real[Array, "h w"],
        landmarks: Float[Array, "n 2"],
        to_image: Float[Array, "2"],
        scale: Int[Array, ""],
        view: Int[Array, ""],
        window: int,
        *,
        arithmetic: Arithmetic,
    ) -> Float[Array, "n k k"]:
        """See `PatchExperts.respond`."""
        area = window + self.support - 1
        fixed_point = arithmetic.fixed_point_sampling
        areas = sample_areas(image, landmarks, to_image, area, fixed_point=fixed_point)
        return self.responses(areas, scale, view, window, arithmetic=arithmetic)


class WholeFaceExperts(PatchExperts):
    """Experts of which a network sees the whole face. There is one view, which shows all
    landmarks."""

    together: ClassVar[int] = 4
    """Convolutions of a few faces take a fifth less time a face: kernels are read once for all."""
    cpu_options: ClassVar[tuple[tuple[str, Any], ...]] = CPU_OPTIONS
    softness: eqx.AbstractVar[Float[Array, " s"]]
    """Variance (square reference pixels) of a response at which its landmark's weight is halved."""

    def shift_weights(
        self,
        responses: Responses,
        scale: Int[Array, ""],
        view: Int[Array, ""],
        factor: Float[Array, ""],
    ) -> Float[Array, " n"]:
        """Each landmark's weight, the smaller the wider its response is spread."""
        visible = self.visible[scale, view]
        fixed = landmark_weights(self.confidence[scale, view], visible, factor)
        softness = self.softness[scale]
        return fixed * softness / (softness + variance(responses))


def landmark_weights(
    confidence: Float[Array, " n"], visible: Bool[Array, " n"], factor: Float[Array, ""]
) -> Float[Array, " n"]:
    """The diagonal of W: `factor * confidence`, or 1 where the factor is 0; invisible ones 0.

    The weights jump at factor 0: take derivatives with respect to it only where it is positive.
    """
    weights = jnp.where(factor > 0, factor * confidence, 1.0)
    return jnp.where(visible, weights, 0.0)


def variance(responses: Responses) -> Float[Array, " n"]:
    """Mean squared distance from the mean position, of responses that sum to 1."""
    if isinstance(responses, GaussianResponses):
        return responses.covariance[:, 0, 0] + responses.covariance[:, 1, 1]
    positions = jnp.arange(responses.shape[-1], dtype=responses.dtype)
    total: Any = 0.0
    for marginal in (responses.sum(1), responses.sum(2)):
        mean = product(marginal, positions)
        total = total + jnp.sum(marginal * (positions[None] - mean[:, None]) ** 2, axis=1)
    return total
