"""Continuous conditional neural field (CCNF) patch experts.

A layer of sigmoid neurons over normalised 11x11 patches, summed, then smoothed over the window by
the field's covariance. Source: Baltrusaitis, Robinson, Morency, "Constrained Local Neural Fields
for robust facial landmark detection in the wild" (ICCVW 2013), section 3.1, equations 2-8.
"""

from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jclnf.errors import ModelFileError, ParamsError
from jclnf.experts._base import AreaExperts
from jclnf.geometry import bilinear, inverses, pairwise_sum, precise
from jclnf.params import EXACT, Arithmetic, to_device

ALPHA_THRESHOLD = 1e-4
"""Neurons whose alpha is not above this are left out of the response."""
LANES = 8
"""How many neurons are evaluated side by side: as many as a processor's vector has numbers."""


class CCNF(AreaExperts):
    """CCNF experts by their parameters: what a file holds and training changes.

    A fit works with these directly, taking the covariance of the view it needs each time;
    `prepare` takes all of them once.
    """

    in_one_thread: ClassVar[bool] = True
    weights: Float[Array, "s v n q support support"]
    """Each neuron's weights, `[..., y, x]`."""
    norm_weight: Float[Array, "s v n q"]
    bias: Float[Array, "s v n q"]
    alpha: Float[Array, "s v n q"]
    """Weight of each neuron in the field; 0 for a neuron that does not exist."""
    beta: Float[Array, "s v n b"]
    """Weight of each similarity component in the field."""
    components: dict[int, Float[Array, "s b 4 _ _"]]
    """By window: the similarity components, as blocks in the basis of `mirror_basis`. Windows
    that are not there have none: the field is then diagonal."""
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
        the window in x and in y, as matrices built from pixel distances are.

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
        return ccnf_responses(
            areas,
            *neurons_last(self.weights[at], self.norm_weight[at], self.bias[at], alpha),
            covariance(alpha, self.beta[at], self._components_at(window, scale))[None],
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

    weights: Float[Array, "s v n support support l"]
    """As `neurons_last` has them."""
    bias: Float[Array, "s v n l"]
    gain: Float[Array, "s v n l"]
    covariances: dict[int, Float[Array, "_ v n ..."]]
    """By window: the field's covariance for each scale with that window, see `covariance`."""
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
        at = (scale, view)
        slots = np.cumsum(np.equal(self.windows, window)) - 1
        covariances = self.covariances[window]
        return ccnf_responses(
            areas,
            self.weights[at],
            self.bias[at],
            self.gain[at],
            covariances.reshape(-1, *covariances.shape[2:]),
            jnp.asarray(slots)[scale] * covariances.shape[1] + view,
            window,
        )

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

    def at_scale(window: int, k: int) -> Float[Array, "v n ..."]:
        components = experts._components_at(window, k)
        return covariance(experts.alpha[k], experts.beta[k], components)

    weights, bias, gain = neurons_last(
        experts.weights, experts.norm_weight, experts.bias, experts.alpha
    )
    return {
        "weights": weights,
        "bias": bias,
        "gain": gain,
        "covariances": {
            window: jnp.stack([at_scale(window, k) for k in scales]) for window, scales in scales_of
        },
    }


def ccnf_responses(
    areas: Float[Array, "n a a"],
    weights: Float[Array, "n support support l"],
    bias: Float[Array, "n l"],
    gain: Float[Array, "n l"],
    covariances: Float[Array, "m n ..."],
    at: Any,
    window: int,
) -> Float[Array, "n k k"]:
    """Response maps of CCNF experts.

    Each patch is centred on its mean and scaled to norm 1 (a flat one stays 0); then

        f = sum_q gain_q sigmoid(<weights_q, patch> + bias_q),    response = Sigma vec(f),

    lifted to a minimum of 0 where it is negative.

    Args:
        areas: grey levels around each landmark.
        weights: as `neurons_last` has them; since they are centred, patches need not be.
        bias: as `neurons_last` has them.
        gain: as `neurons_last` has them.
        covariances: several, as `covariance` gives them.
        at: which of those is Sigma.
        window: side `k` of a map.
    """
    # Single precision would lose digits to a common grey level.
    areas = areas - areas.mean(axis=(1, 2), keepdims=True)
    projections = correlate(areas, weights) * patch_scale(areas, window)[..., None]
    neurons = jax.nn.sigmoid(projections + bias[:, None, None])
    response = smooth(covariances, at, precise("nyxl,nl->nyx", neurons, gain))
    lowest = response.min(axis=(1, 2), keepdims=True)
    return response - jnp.minimum(lowest, 0.0)


def neurons_last(
    weights: Float[Array, "*n q support support"],
    norm_weight: Float[Array, "*n q"],
    bias: Float[Array, "*n q"],
    alpha: Float[Array, "*n q"],
) -> tuple[Float[Array, "*n support support l"], Float[Array, "*n l"], Float[Array, "*n l"]]:
    """What `ccnf_responses` takes of neurons: weights times `norm_weight`, less each neuron's mean,
    pixel by pixel those of all neurons; biases; and gains, `2 alpha` of the neurons that count
    (above `ALPHA_THRESHOLD`) and 0 of the others. All are filled up with zeros to a multiple of
    `LANES`."""
    weights = weights - weights.mean(axis=(-2, -1), keepdims=True)
    last = jnp.moveaxis(weights * norm_weight[..., None, None], -3, -1)
    gain = jnp.where(alpha > ALPHA_THRESHOLD, 2 * alpha, 0.0)
    return _fill_lanes(last), _fill_lanes(bias), _fill_lanes(gain)


def _fill_lanes(array: Float[Array, "*n q"]) -> Float[Array, "*n l"]:
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % LANES)])


def _patch_products(
    areas: Float[Array, "n a a"], weights: Float[Array, "n support support l"]
) -> Float[Array, "n k k l"]:
    window = areas.shape[-1] - weights.shape[-2] + 1
    flat = weights.reshape(len(weights), -1, weights.shape[-1])
    products = precise("npk,npl->nkl", patch_columns(areas, window), flat)
    return products.reshape(-1, window, window, weights.shape[-1])


@bilinear(_patch_products)
def correlate(
    areas: Float[Array, "n a a"], weights: Float[Array, "n support support l"]
) -> Float[Array, "n k k l"]:
    """Products of each patch of an area with each neuron's weights.

    A sum over the pixels of a patch, of whole windows of the area times the weights of all neurons:
    compiled, one loop without any copy of patches, with the neurons side by side in vectors.
    """
    support, lanes = weights.shape[-2:]
    window = areas.shape[-1] - support + 1

    def product(y: int, x: int, neurons: slice) -> Array:
        shifted = areas[:, y : y + window, x : x + window, None]
        return shifted * weights[:, None, None, y, x, neurons]

    groups = [
        pairwise_sum(
            [
                pairwise_sum([product(y, x, slice(at, at + LANES)) for x in range(support)])
                for y in range(support)
            ]
        )
        for at in range(0, lanes, LANES)
    ]
    # XLA fuses nothing with a product of matrices, and the long loop compiles best by itself.
    return precise(
        "nyxl,lm->nyxm", jnp.concatenate(groups, axis=-1), jnp.eye(lanes, dtype=areas.dtype)
    )


def patch_scale(areas: Float[Array, "n a a"], window: int) -> Float[Array, "n k k"]:
    """One over the norm of each patch less its mean, 0 where it is flat, so that no more than
    rounding is left of it."""
    side = areas.shape[-1]
    support = side - window + 1
    # Products with it are means of so many neighbours.
    apart = np.subtract.outer(np.arange(side), np.arange(window))
    band = jnp.asarray(((apart >= 0) & (apart < support)) / support, areas.dtype)
    # Of each run of pixels down a column, and then of the runs side by side: nothing large is
    # ever subtracted from something large. Rows come first: products of matrices take and give
    # them so, and what lies between is sums of whole rows.
    rows = jnp.transpose(areas, (1, 0, 2))
    runs = precise("vy,vnu->ynu", band, rows)
    within = pairwise_sum([(rows[d : d + window] - runs) ** 2 for d in range(support)])
    mean = precise("ynu,ux->ynx", runs, band)
    between = pairwise_sum([(runs[..., d : d + window] - mean) ** 2 for d in range(support)])
    energy = support * (precise("ynu,ux->ynx", within, band) + between)
    return jnp.transpose(_inverse_root(energy, mean, support), (1, 0, 2))


def patch_columns(areas: Float[Array, "n a a"], window: int) -> Float[Array, "n p positions"]:
    """The patches of each area as columns, both row by row."""
    n, side, _ = areas.shape
    support = side - window + 1
    rows = jnp.stack([areas[:, dy : dy + window] for dy in range(support)], axis=1)
    patches = jnp.stack([rows[..., dx : dx + window] for dx in range(support)], axis=2)
    # Without the barrier XLA gathers the patches again wherever they are used.
    return lax.optimization_barrier(patches.reshape(n, support**2, window**2))


def patch_contrast(
    areas: Float[Array, "n a a"], window: int
) -> tuple[Float[Array, "n p positions"], Float[Array, "n positions"]]:
    """The patches of each area as columns, less their mean, and one over the norm of each, 0 where
    it is flat, so that no more than rounding is left of it."""
    areas = areas - areas.mean(axis=(1, 2), keepdims=True)
    patches = patch_columns(areas, window)
    mean = patches.mean(axis=1)
    patches = patches - mean[:, None]
    support = areas.shape[-1] - window + 1
    return patches, _inverse_root(jnp.sum(patches**2, axis=1), mean, support)


def _inverse_root(energy: Array, mean: Array, support: int) -> Array:
    """One over the root of the patches' energy, 0 where that is no more than rounding."""
    rounding = support**2 * (8 * jnp.finfo(mean.dtype).eps * mean) ** 2
    return lax.rsqrt(jnp.where(energy > rounding, energy, jnp.inf))


def covariance(
    alpha: Float[Array, "*n q"],
    beta: Float[Array, "*n b"],
    components: Float[Array, "b 4 h h"] | None,
) -> Float[Array, "..."]:
    """The field's covariance `Sigma = (2 (sum_q alpha_q I + sum_b beta_b C_b))^-1`.

    Returns:
        The blocks (4, h, h) of Sigma in the basis of `mirror_basis`; or, without components, the
        one number on its diagonal. Experts without neurons get the identity.
    """
    precision = 2 * alpha.sum(axis=-1)
    precision = jnp.where(precision == 0, 1.0, precision)
    if components is None:
        return 1 / precision
    blocks = 2 * precise("...b,bcij->...cij", beta, components)
    identity = np.broadcast_to(np.eye(components.shape[-1], dtype=blocks.dtype), blocks.shape)
    return inverses(blocks + precision[..., None, None, None] * identity)


def smooth(covariances: Float[Array, "m n ..."], at: Any, field: Float[Array, "n k k"]) -> Array:
    """`Sigma vec(field)` of each map, Sigma the one at `at` of what `covariance` gives."""
    if covariances.ndim == 2:
        return covariances[at][:, None, None] * field
    n, window, _ = field.shape
    one = mirror_basis(window)
    both = np.einsum("yai,xbj->yxabij", one, one).reshape(window**2, -1)
    basis = jnp.asarray(both, field.dtype)
    parts = precise("np,pb->nb", field.reshape(n, -1), basis).reshape(n, 4, -1)
    parts = _filtered(covariances, parts, at).reshape(n, -1)
    return precise("nb,pb->np", parts, basis).reshape(field.shape)


def _block_products(
    blocks: Float[Array, "m n c h h"], parts: Float[Array, "n c h"], at: Any
) -> Float[Array, "n c h"]:
    return precise("ncji,ncj->nci", blocks[at], parts)


@bilinear(_block_products)
def _filtered(
    blocks: Float[Array, "m n c h h"], parts: Float[Array, "n c h"], at: Any
) -> Float[Array, "n c h"]:
    """Products of the symmetric blocks at `at` with vectors. They are read from where they are: for
    a product of matrices XLA would first copy them."""

    def column(j: int) -> Array:
        # Not `blocks[at][:, :, j]`, which would be one copy with many readers.
        start = (at, *[jnp.zeros_like(at)] * 2, jnp.full_like(at, j), jnp.zeros_like(at))
        sizes = (1, *blocks.shape[1:3], 1, blocks.shape[-1])
        return lax.dynamic_slice(blocks, start, sizes).reshape(parts.shape)

    return pairwise_sum([column(j) * parts[:, :, j, None] for j in range(parts.shape[-1])])


def mirror_basis(window: int) -> np.ndarray:
    """Orthonormal even and odd functions on `window` pixels.

    Matrices that stay the same when the window is mirrored fall, in the products of this basis
    along y and x, into four blocks (even-even, even-odd, odd-even, odd-odd), a quarter of the
    side of the full matrix each.

    Returns:
        Array (window, 2, (window + 1) // 2): pixel, parity, index; the odd functions of an odd
        window are one fewer, and padded with a zero.
    """
    half = (window + 1) // 2
    basis = np.zeros((window, 2, half))
    for i in range(half):
        mirrored = window - 1 - i
        if i == mirrored:
            basis[i, 0, i] = 1.0
        else:
            basis[[i, mirrored], 0, i] = np.sqrt(0.5)
            basis[[i, mirrored], 1, i] = np.sqrt(0.5), -np.sqrt(0.5)
    return basis


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
