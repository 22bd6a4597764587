"""Support vector regression (SVR) patch experts: the original constrained local model's.

Each expert is one template. How well a patch correlates with it, put through a logistic function,
is the probability that the landmark is there. Sources: Saragih, Lucey, Cohn, "Deformable model
fitting by regularized landmark mean-shift" (IJCV 2011), section 3.1, equations 8-9; for several
modalities, Baltrusaitis, Robinson, Morency, "3D constrained local model for rigid and non-rigid
facial tracking" (CVPR 2012), section 3.2.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jclnf.experts._base import AreaExperts
from jclnf.experts._patches import patch_contrast
from jclnf.geometry import precise
from jclnf.params import EXACT, Arithmetic, to_device

ABSENT_BIAS = 40.0
"""Bias of an expert that does not exist; with a slope of 0 its factor is 1 in double precision."""


class SVR(AreaExperts):
    """SVR experts by their parameters. There is nothing that `prepare` could save a fit."""

    weights: Float[Array, "s v n e support support"]
    """Each expert's template, `[..., y, x]`; its mean and norm do not matter."""
    slope: Float[Array, "s v n e"]
    """Factor of the correlation, which is from -1 to 1."""
    bias: Float[Array, "s v n e"]
    centres: Float[Array, "s v 3"]
    visible: Bool[Array, "s v n"]
    confidence: Float[Array, "s v n"]
    scalings: tuple[float, ...] = eqx.field(static=True)
    support: int = eqx.field(static=True)
    modalities: tuple[str, ...] = eqx.field(static=True)
    """Inputs of the experts on axis `e`: names of `MODALITIES`."""

    def inconsistency(self) -> str | None:
        """See `PatchExperts.inconsistency`."""
        experts, support = jnp.shape(self.weights)[-3::2]
        if support != self.support:
            return f"weights has patches of {support} pixels, not {self.support}"
        if len(self.modalities) != experts or not set(self.modalities) <= set(MODALITIES):
            names = ", ".join(MODALITIES)
            return f"modalities is {self.modalities}, not {experts} names of {names}"
        return None

    @staticmethod
    def create(
        *,
        scalings: tuple[float, ...],
        modalities: tuple[str, ...],
        weights: Any,
        slope: Any,
        bias: Any,
        centres: Any,
        visible: Any,
        confidence: Any,
    ) -> "SVR":
        """Experts from NumPy arrays; arguments are as the fields.

        Raises:
            ModelFileError: shapes that do not go together, or a modality that is not known.
        """
        return SVR(
            weights=to_device(weights, jnp.float32),
            slope=to_device(slope, jnp.float32),
            bias=to_device(bias, jnp.float32),
            centres=to_device(centres, jnp.float32),
            visible=to_device(visible, bool),
            confidence=to_device(confidence, jnp.float32),
            scalings=tuple(float(a) for a in scalings),
            support=np.shape(weights)[-1],
            modalities=tuple(modalities),
        )

    def responses(
        self,
        areas: Float[Array, "n a a"],
        scale: Int[Array, ""],
        view: Int[Array, ""],
        window: int,
        *,
        arithmetic: Arithmetic = EXACT,
    ) -> Float[Array, "n k k"]:
        """See `AreaExperts.responses`."""
        del arithmetic
        at = (scale, view)
        return svr_responses(
            areas, self.weights[at], self.slope[at], self.bias[at], self.modalities, window
        )


def svr_responses(
    areas: Float[Array, "n a a"],
    weights: Float[Array, "n e support support"],
    slope: Float[Array, "n e"],
    bias: Float[Array, "n e"],
    modalities: tuple[str, ...],
    window: int,
) -> Float[Array, "n k k"]:
    """Response maps of SVR experts.

    With `c_e` the correlation coefficient of the template `e` and the patch of its modality (0
    where either is flat),

        response = prod_e sigmoid(slope_e c_e + bias_e).

    The coefficient does not change when the area is shifted or scaled as a whole, which is why
    areas are not standardised first.

    Args:
        areas: grey levels around each landmark.
        weights: templates, `[..., y, x]`.
        slope: factor of each template's correlation.
        bias: bias of each template.
        modalities: what each template looks at.
        window: side `k` of a map.
    """
    templates = _unit(weights)
    response = jnp.ones((), areas.dtype)
    for modality in dict.fromkeys(modalities):
        chosen = np.flatnonzero([name == modality for name in modalities])
        patches, scale = patch_contrast(MODALITIES[modality](areas), window)
        correlation = precise("nep,npk->nek", templates[:, chosen], patches) * scale[:, None]
        logits = slope[:, chosen, None] * correlation + bias[:, chosen, None]
        response = response * jax.nn.sigmoid(logits).prod(axis=1)
    return response.reshape(-1, window, window)


def gradient_energy(areas: Float[Array, "n a a"]) -> Float[Array, "n a a"]:
    """Squared magnitude of the gradient by central differences; 0 along the border of an area.

    The differences are not halved: a common factor does not change a correlation.
    """
    along_x = areas[:, 1:-1, 2:] - areas[:, 1:-1, :-2]
    along_y = areas[:, 2:, 1:-1] - areas[:, :-2, 1:-1]
    return jnp.pad(along_x**2 + along_y**2, ((0, 0), (1, 1), (1, 1)))


def _grey(areas: Float[Array, "n a a"]) -> Float[Array, "n a a"]:
    return areas


MODALITIES: dict[str, Callable[[Float[Array, "n a a"]], Float[Array, "n a a"]]] = {
    "raw": _grey,
    "gradient": gradient_energy,
}
"""Inputs that an expert may have, as functions of the grey levels."""


def _unit(weights: Float[Array, "n e support support"]) -> Float[Array, "n e p"]:
    """Templates less their mean, of norm 1; a flat one is 0. Pixels row by row."""
    flat = weights.reshape(*weights.shape[:-2], -1)
    flat = flat - flat.mean(axis=-1, keepdims=True)
    energy = jnp.sum(flat**2, axis=-1, keepdims=True)
    regular = energy > 0
    return jnp.where(regular, flat / jnp.sqrt(jnp.where(regular, energy, 1.0)), 0.0)
