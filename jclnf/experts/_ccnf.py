"""Continuous conditional neural field (CCNF) patch experts.

A layer of sigmoid neurons over normalised 11x11 patches, summed, then smoothed over the window by
the field's covariance. Source: Baltrusaitis, Robinson, Morency, "Constrained Local Neural Fields
for robust facial landmark detection in the wild" (ICCVW 2013), section 3.1, equations 2-8.
"""

import math
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jclnf.errors import ModelFileError, ParamsError, is_concrete
from jclnf.experts._base import CPU_OPTIONS, AreaExperts
from jclnf.experts._neural_field import (
    ccnf_responses,
    covariances,
    mirror_basis,
    neurons_side_by_side,
)
from jclnf.params import EXACT, Arithmetic, to_device

CCNF_OPTIONS = (
    *CPU_OPTIONS,
    # Where all is small, XLA's threads pass it to and fro for longer than it takes.
    ("xla_cpu_multi_thread_eigen", False),
)


class CCNF(AreaExperts):
    """CCNF experts by their parameters: what a file holds and training changes.

    A fit works with these directly, taking the covariance of the view it needs each time;
    `prepare` takes all of them once.
    """

    cpu_options: ClassVar[tuple[tuple[str, Any], ...]] = CCNF_OPTIONS
    weights: Float[Array, "s v n q support support"]
    """Each neuron's weights, `[..., y, x]`."""
    norm_weight: Float[Array, "s v n q"]
    bias: Float[Array, "s v n q"]
    alpha: Float[Array, "s v n q"]
    """Weight of each neuron in the field; 0 for a neuron that does not exist."""
    beta: Float[Array, "s v n b"]
    """Weight of each similarity component in the field."""
    components: dict[int, Float[Array, "s b 4 _ _"]]
    """By window: the similarity components, as blocks in the basis of `mirror_basis`, the same when
    x and y are exchanged. Windows that are not there have none: the field is then diagonal."""
    centres: Float[Array, "s v 3"]
    visible: Bool[Array, "s v n"]
    confidence: Float[Array, "s v n"]
    scalings: tuple[float, ...] = eqx.field(static=True)
    support: int = eqx.field(static=True)

    def inconsistency(self) -> str | None:
        """See `PatchExperts.inconsistency`."""
        if jnp.shape(self.weights)[-1] != self.support:
            return (
                f"weights has patches of {jnp.shape(self.weights)[-1]} pixels, not {self.support}"
            )
        for window, blocks in self.components.items():
            half = ((window + 1) // 2) ** 2
            if jnp.shape(blocks)[-2:] != (half, half):
                return f"components[{window}] has blocks of {jnp.shape(blocks)[-2:]}, not {half}"
            if is_concrete(blocks) and not _exchangeable(np.asarray(blocks, np.float64)):
                return f"components[{window}] is not symmetric under exchanging x and y"
        return None

    @staticmethod
    def create(
        *,
        scalings: tuple[float, ...],
        weights: Any,
        norm_weight: Any,
        bias: Any,
        alpha: Any,
        beta: Any,
        components: dict[int, Any],
        centres: Any,
        visible: Any,
        confidence: Any,
    ) -> "CCNF":
        """Experts from NumPy arrays.

        Arguments are as the fields, but for `components`: full `(s, b, k*k, k*k)` matrices over
        the row-major pixels of a `k` by `k` window. They must be symmetric, also under mirroring
        the window in x and in y and under exchanging x and y, as matrices built from pixel
        distances are.

        Raises:
            ModelFileError: shapes that do not go together, or components without that symmetry.
        """
        arrays: dict[str, Any] = {
            "weights": weights,
            "norm_weight": norm_weight,
            "bias": bias,
            "alpha": alpha,
            "beta": beta,
            "confidence": confidence,
            "centres": centres,
        }
        return CCNF(
            **{name: to_device(array, jnp.float32) for name, array in arrays.items()},
            components={k: to_device(to_blocks(c, k)) for k, c in components.items()},
            visible=to_device(visible, bool),
            scalings=tuple(float(a) for a in scalings),
            support=np.shape(weights)[-1],
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
        alpha = self.alpha[at]
        fields = covariances(alpha, self.beta[at], self._components_at(window, scale), window)
        return ccnf_responses(
            areas,
            *neurons_side_by_side(self.weights[at], self.norm_weight[at], self.bias[at], alpha),
            fields[None],
            0,
            window,
        )

    def prepare(self, windows: tuple[int, ...]) -> "PreparedCCNF":
        """See `PatchExperts.prepare`; `windows` by scale, 0 for a scale that is not fitted."""
        if len(windows) != len(self.scalings):
            raise ParamsError(f"{len(windows)} windows for {len(self.scalings)} scales")
        scales_of: dict[int, list[int]] = {}
        for scale, window in enumerate(windows):
            scales_of.setdefault(window, []).append(scale)
        scales_of.pop(0, None)
        derived = _derived(self, tuple((window, tuple(scales_of[window])) for window in scales_of))
        return PreparedCCNF(
            **derived,
            centres=self.centres,
            visible=self.visible,
            confidence=self.confidence,
            scalings=self.scalings,
            support=self.support,
            windows=windows,
        )

    def _components_at(
        self, window: int, scale: Int[Array, ""] | int
    ) -> Float[Array, "b 4 h h"] | None:
        found = self.components.get(window)
        return None if found is None else found[scale]


class PreparedCCNF(AreaExperts):
    """CCNF experts ready to be evaluated, from `CCNF.prepare`.

    Its arrays are derived from a `CCNF`'s parameters, so they are named differently, and a
    derivative with respect to them is not one with respect to the parameters.
    """

    cpu_options: ClassVar[tuple[tuple[str, Any], ...]] = CCNF_OPTIONS
    weights: dict[int, Float[Array, "_ v b q support support l"]]
    """By window: for each scale with that window, as `neurons_side_by_side` has them. An array for
    each window, so that a derivative adds up the slopes of all faces in place."""
    bias: dict[int, Float[Array, "_ v b q l"]]
    gain: dict[int, Float[Array, "_ v b q l"]]
    covariances: dict[int, Float[Array, "_ v b ..."]]
    """The same of the fields' covariances, see the function of that name."""
    centres: Float[Array, "s v 3"]
    visible: Bool[Array, "s v n"]
    confidence: Float[Array, "s v n"]
    scalings: tuple[float, ...] = eqx.field(static=True)
    support: int = eqx.field(static=True)
    windows: tuple[int, ...] = eqx.field(static=True)

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
        slots = np.cumsum(np.equal(self.windows, window)) - 1
        views = self.centres.shape[1]
        at = jnp.asarray(slots)[scale] * views + view
        weights, bias, gain, fields = (
            field[window].reshape(-1, *field[window].shape[2:])
            for field in (self.weights, self.bias, self.gain, self.covariances)
        )
        return ccnf_responses(areas, weights[at], bias[at], gain[at], fields, at, window)

    def prepare(self, windows: tuple[int, ...]) -> "PreparedCCNF":
        """These very experts; an error if they were prepared for other windows."""
        usable = len(windows) == len(self.windows) and all(
            wanted in (0, had) for wanted, had in zip(windows, self.windows, strict=True)
        )
        if not usable:
            raise ParamsError(
                f"the experts were prepared for the windows {self.windows}, not {windows}: "
                "call prepare on the model as it was loaded"
            )
        return self


@partial(jax.jit, static_argnums=1)
def _derived(experts: CCNF, scales_of: tuple[tuple[int, tuple[int, ...]], ...]) -> dict[str, Any]:
    """The fields of `PreparedCCNF` that are not those of `CCNF`, for scales by their windows."""

    # Computed again for derivatives: kept, it would be as much memory again until the last face.
    @partial(jax.checkpoint, static_argnums=1)
    def neurons(experts: CCNF, k: int) -> tuple[Array, Array, Array]:
        fields = (experts.weights, experts.norm_weight, experts.bias, experts.alpha)
        return neurons_side_by_side(*(field[k] for field in fields))

    def at_scale(window: int, k: int) -> dict[str, Array]:
        weights, bias, gain = neurons(experts, k)
        components = experts._components_at(window, k)
        fields = covariances(experts.alpha[k], experts.beta[k], components, window)
        return {"weights": weights, "bias": bias, "gain": gain, "covariances": fields}

    by_window = {
        window: jax.tree.map(lambda *each: jnp.stack(each), *(at_scale(window, k) for k in scales))
        for window, scales in scales_of
    }
    names = ("weights", "bias", "gain", "covariances")
    return {name: {w: arrays[name] for w, arrays in by_window.items()} for name in names}


def _exchangeable(blocks: np.ndarray) -> bool:
    """Whether components `(s, b, 4, h*h, h*h)`, as they are stored, stay the same when x and y are
    exchanged, but for what rounding makes of them in training."""
    half = math.isqrt(blocks.shape[-1])
    apart = blocks.reshape(*blocks.shape[:2], 2, 2, *[half] * 4)
    exchanged = apart.transpose(0, 1, 3, 2, 5, 4, 7, 6)
    largest = np.abs(apart).max(initial=0.0)
    return not np.abs(apart - exchanged).max(initial=0.0) > 1e-4 * largest


def to_blocks(components: np.ndarray, window: int) -> np.ndarray:
    """Components `(s, b, k*k, k*k)` as blocks `(s, b, 4, h, h)` in the basis of `mirror_basis`."""
    if np.shape(components)[2:] != (window**2, window**2):
        problem = f"components[{window}] is of shape {np.shape(components)}, not for its window"
        raise ModelFileError("CCNF experts", problem)
    matrices = np.asarray(components, np.float64).reshape(*components.shape[:2], *[window] * 4)
    tolerance = 1e-5 * np.abs(matrices).max(initial=0.0)
    for name, mirrored in (
        ("transposition", matrices.transpose(0, 1, 4, 5, 2, 3)),
        ("mirroring in y", matrices[:, :, ::-1, :, ::-1]),
        ("mirroring in x", matrices[:, :, :, ::-1, :, ::-1]),
        ("exchanging x and y", matrices.transpose(0, 1, 3, 2, 5, 4)),
    ):
        if np.abs(matrices - mirrored).max(initial=0.0) > tolerance:
            problem = f"the components of window {window} are not symmetric under {name}"
            raise ModelFileError("CCNF experts", problem)
    basis = mirror_basis(window)
    half = basis.shape[-1]
    blocks = np.einsum(
        "sbyxvu,yci,xdj,vck,udl->sbcdijkl", matrices, basis, basis, basis, basis, optimize=True
    )
    return blocks.reshape(*components.shape[:2], 4, half**2, half**2).astype(np.float32)
