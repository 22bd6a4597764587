"""The responses of continuous conditional neural fields, landmarks side by side.

A processor multiplies vectors of numbers, and reads them fastest from where they lie in a row. So
landmarks, which all go through the same arithmetic, lie side by side: in blocks of `LANES`, whose
axis is the first of an array, with a landmark's place in its block as the last. Nothing is then
summed, shifted or mirrored within a vector, whatever the window and the number of neurons.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jclnf.experts._patches import inverse_root, patch_columns
from jclnf.geometry import bilinear, inverses, pairwise_sum, precise, with_transpose

ALPHA_THRESHOLD = 1e-4
"""Neurons whose alpha is not above this are left out of the response."""
LANES = 16
"""How many landmarks lie side by side: as many as the widest vectors of processors have numbers."""


def ccnf_responses(
    areas: Float[Array, "n a a"],
    weights: Float[Array, "b q support support l"],
    bias: Float[Array, "b q l"],
    gain: Float[Array, "b q l"],
    covariances: Float[Array, "m b ..."],
    at: Any,
    window: int,
) -> Float[Array, "n k k"]:
    """Response maps of CCNF experts.

    Each patch is centred on its mean and scaled to norm 1 (a flat one stays 0); then

        f = sum_q gain_q sigmoid(<weights_q, patch> + bias_q),    response = Sigma vec(f),

    lifted to a minimum of 0 where it is negative.

    Args:
        areas: grey levels around each landmark.
        weights: as `neurons_side_by_side` has them; since they are centred, patches need not be.
        bias: as `neurons_side_by_side` has them.
        gain: as `neurons_side_by_side` has them.
        covariances: several, as `covariance` gives them, the landmarks of each `side_by_side`.
        at: which of those is Sigma.
        window: side `k` of a map.
    """
    # Single precision would lose digits to a common grey level. And what is not finite must stay
    # with its landmark.
    mean = areas.mean(axis=(1, 2), keepdims=True)
    finite = jnp.isfinite(mean)
    blocks = _fence(side_by_side(jnp.where(finite, areas - mean, 0.0)))
    projections, scale = correlate(blocks, weights), patch_scale(blocks, window)
    bias, gain = _fence(bias), _fence(gain)
    neurons = [
        gain[:, q, None, None] * jax.nn.sigmoid(projections[:, q] * scale + bias[:, q, None, None])
        for q in range(weights.shape[1])
    ]
    response = smooth(covariances, at, pairwise_sum(neurons))
    response = response - jnp.minimum(response.min(axis=(1, 2), keepdims=True), 0.0)
    return jnp.where(finite, apart(_fence(response))[: len(areas)], jnp.nan)


def side_by_side(array: Float[Array, "..."], axis: int = 0) -> Float[Array, "..."]:
    """An array whose `axis` is landmarks in blocks of `LANES`, filled up with zeros: the axis is
    then that of blocks, and a landmark's place in its block the last."""
    widths = [(0, -size % LANES if i == axis else 0) for i, size in enumerate(array.shape)]
    shape = *array.shape[:axis], -1, LANES, *array.shape[axis + 1 :]
    return jnp.moveaxis(jnp.pad(array, widths).reshape(shape), axis + 1, -1)


def apart(array: Float[Array, "b *s l"]) -> Float[Array, "_ *s"]:
    """The landmarks of `side_by_side`, with those that were filled up, as the first axis."""
    return jnp.moveaxis(array, -1, 1).reshape(-1, *array.shape[1:-1])


def _fence(array: Float[Array, "*s l"]) -> Float[Array, "*s l"]:
    """The array itself, which is to be finite, computed once for all that is done with it.

    On CPUs: XLA fuses nothing with a product of matrices, and each long loop compiles best by
    itself. Barriers (`lax.optimization_barrier`) are gone by the time that it fuses loops.
    """

    def unchanged(flat: Float[Array, "p l"]) -> Float[Array, "p l"]:
        return precise("pl,lm->pm", flat, jnp.eye(flat.shape[-1], dtype=flat.dtype))

    flat = array.reshape(-1, array.shape[-1])
    same: Array = lax.platform_dependent(flat, cpu=unchanged, default=lambda flat: flat)
    return same.reshape(array.shape)


def neurons_side_by_side(
    weights: Float[Array, "*n q support support"],
    norm_weight: Float[Array, "*n q"],
    bias: Float[Array, "*n q"],
    alpha: Float[Array, "*n q"],
) -> tuple[Float[Array, "*b q support support l"], Float[Array, "*b q l"], Float[Array, "*b q l"]]:
    """What `ccnf_responses` takes of neurons: weights times `norm_weight`, less each neuron's mean;
    biases; and gains, `2 alpha` of the neurons that count (above `ALPHA_THRESHOLD`) and 0 of the
    others. The last axis before the neurons is landmarks, which then lie `side_by_side`."""
    weights = weights - weights.mean(axis=(-2, -1), keepdims=True)
    gain = jnp.where(alpha > ALPHA_THRESHOLD, 2 * alpha, 0.0)
    axis = alpha.ndim - 2
    weights = side_by_side(weights * norm_weight[..., None, None], axis)
    return weights, side_by_side(bias, axis), side_by_side(gain, axis)


def _patch_products(
    areas: Float[Array, "b a a l"], weights: Float[Array, "b q support support l"]
) -> Float[Array, "b q k k l"]:
    support = weights.shape[-2]
    window = areas.shape[-2] - support + 1
    flat = apart(weights).reshape(-1, weights.shape[1], support**2)
    products = precise("nqp,npk->nqk", flat, patch_columns(apart(areas), window))
    return side_by_side(products.reshape(*products.shape[:2], window, window))


def _transposes(
    areas: Float[Array, "b a a l"], weights: Float[Array, "b q support support l"]
) -> tuple[Any, Any]:
    def of_weights(slope: Float[Array, "b q k k l"]) -> Float[Array, "b q support support l"]:
        if slope.shape[-2] <= weights.shape[-2]:
            return correlate(areas, _fence(slope))
        # A sum of so many products takes long to compile.
        (slopes,) = jax.linear_transpose(lambda w: _patch_products(areas, w), weights)(slope)
        found: Array = slopes
        return found

    return lambda slope: _spread(_fence(slope), weights), of_weights


def _spread(
    slope: Float[Array, "b q k k l"], weights: Float[Array, "b q support support l"]
) -> Float[Array, "b a a l"]:
    """What `correlate` makes of areas, transposed: to each pixel of a patch its weight."""
    support = weights.shape[-2]
    beyond = support - 1
    side = slope.shape[-2] + beyond
    wide = jnp.pad(slope, [(0, 0)] * 3 + [(beyond, beyond), (0, 0)])
    # A row of the patch at a time, and then the rows: fewer products with what is beyond.
    rows = [
        wide[:, q, None, :, beyond - x : beyond - x + side] * weights[:, q, :, x][:, :, None, None]
        for q in range(weights.shape[1])
        for x in range(support)
    ]
    high = jnp.pad(_fence(pairwise_sum(rows)), [(0, 0)] * 2 + [(beyond, beyond)] + [(0, 0)] * 2)
    return pairwise_sum([high[:, y, beyond - y : beyond - y + side] for y in range(support)])


@bilinear(_patch_products, _transposes)
def correlate(
    areas: Float[Array, "b a a l"], weights: Float[Array, "b q support support l"]
) -> Float[Array, "b q k k l"]:
    """Products of each patch of an area with each neuron's weights.

    A sum over the pixels of a patch, of whole windows of the area times a weight: compiled, one
    loop without any copy of patches.
    """
    support = weights.shape[-2]
    window = areas.shape[-2] - support + 1

    def product(y: int, x: int) -> Array:
        shifted = areas[:, None, y : y + window, x : x + window]
        return shifted * weights[:, :, y, x][:, :, None, None]

    rows = [pairwise_sum([product(y, x) for x in range(support)]) for y in range(support)]
    return _fence(pairwise_sum(rows))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def patch_scale(areas: Float[Array, "b a a l"], window: int) -> Float[Array, "b k k l"]:
    """One over the norm of each patch less its mean, 0 where it is flat, so that no more than
    rounding is left of it."""
    support = areas.shape[1] - window + 1
    # Of each run of pixels down a column, and then of the runs side by side: nothing large is
    # ever subtracted from something large.
    runs = pairwise_sum(_shifted(areas, window, 1)) / support
    within = _fence(pairwise_sum([(rows - runs) ** 2 for rows in _shifted(areas, window, 1)]))
    mean = pairwise_sum(_shifted(runs, window, 2)) / support
    between = pairwise_sum([(columns - mean) ** 2 for columns in _shifted(runs, window, 2)])
    energy = pairwise_sum(_shifted(within, window, 2)) + support * between
    return inverse_root(energy, mean, support)


@patch_scale.defjvp
def _patch_scale_jvp(window: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (areas,), (change,) = primals, tangents
    support = areas.shape[1] - window + 1
    scale, mean = patch_scale(areas, window), _sums(areas, support) / support**2
    energy = _sums(areas * change, support) - mean * _sums(change, support)
    return scale, -(scale**3) * energy


def _sums(array: Float[Array, "b a a l"], support: int) -> Float[Array, "b k k l"]:
    """Over squares of so many pixels."""

    def sums(array: Array) -> Array:
        window = array.shape[1] - support + 1
        down = _fence(pairwise_sum(_shifted(array, window, 1)))
        return pairwise_sum(_shifted(down, window, 2))

    def transpose(slope: Array) -> Array:
        beyond = (support - 1, support - 1)
        return sums(jnp.pad(slope, [(0, 0), beyond, beyond, (0, 0)]))

    return with_transpose(sums, sums, transpose, array)


def _shifted(array: Array, window: int, axis: int) -> list[Array]:
    """All windows of an array along an axis, by where they begin."""
    count = array.shape[axis] - window + 1
    return [lax.slice_in_dim(array, d, d + window, axis=axis) for d in range(count)]


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


def smooth(
    covariances: Float[Array, "m b ..."], at: Any, field: Float[Array, "b k k l"]
) -> Float[Array, "b k k l"]:
    """`Sigma vec(field)` of each map, Sigma the one at `at` of what `covariance` gives."""
    if covariances.ndim == 3:
        return covariances[at][:, None, None] * field
    blocks, window, _, lanes = field.shape
    parts = [part for rows in _to_parities(field, 1) for part in _to_parities(rows, 2)]
    together = _fence(jnp.stack(parts, axis=1).reshape(blocks, 4, -1, lanes))
    filtered = _fence(_filtered(covariances, together, at))
    parts = [filtered[:, c].reshape(parts[c].shape) for c in range(4)]
    rows = [_from_parities(parts[at : at + 2], window, 2) for at in (0, 2)]
    return _from_parities(rows, window, 1)


def _block_products(
    blocks: Float[Array, "m b c h h l"], parts: Float[Array, "b c h l"], at: Any
) -> Float[Array, "b c h l"]:
    return jnp.sum(blocks[at] * parts[:, :, :, None], axis=2)


@bilinear(_block_products)
def _filtered(
    blocks: Float[Array, "m b c h h l"], parts: Float[Array, "b c h l"], at: Any
) -> Float[Array, "b c h l"]:
    """Products of the symmetric blocks at `at` with vectors. They are read from where they are:
    a copy would take as long as the products."""

    def column(j: int) -> Array:
        # Not `blocks[at][:, :, j]`, which would be one copy with many readers.
        zero = jnp.zeros_like(at)
        start = (at, zero, zero, jnp.full_like(at, j), zero, zero)
        sizes = (1, *blocks.shape[1:3], 1, *blocks.shape[-2:])
        return lax.dynamic_slice(blocks, start, sizes).reshape(parts.shape)

    return pairwise_sum([column(j) * parts[:, :, j, None] for j in range(parts.shape[2])])


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


def _to_parities(field: Float[Array, "..."], axis: int) -> list[Array]:
    """Coefficients of the even and of the odd functions of `mirror_basis` along an axis."""
    window = field.shape[axis]
    half = (window + 1) // 2
    near = lax.slice_in_dim(field, 0, half, axis=axis)
    far = lax.rev(lax.slice_in_dim(field, window - half, window, axis=axis), (axis,))
    return [a * near + b * far for a, b in _parity_values(window, axis, field)]


def _from_parities(parts: list[Array], window: int, axis: int) -> Array:
    """The field that has these coefficients, see `_to_parities`."""
    values = _parity_values(window, axis, parts[0])
    near = pairwise_sum([a * part for (a, _), part in zip(values, parts, strict=True)])
    far = pairwise_sum([b * part for (_, b), part in zip(values, parts, strict=True)])
    far = lax.slice_in_dim(far, 0, window // 2, axis=axis)
    return jnp.concatenate([near, lax.rev(far, (axis,))], axis=axis)


def _parity_values(window: int, axis: int, like: Array) -> list[tuple[Array, Array]]:
    """The even functions of `mirror_basis`, and the odd ones: the values of each at its pixel and
    at the mirrored one (0 if that is the same), along an axis of an array."""
    i = np.arange((window + 1) // 2)
    basis = mirror_basis(window)
    near, far = basis[i, :, i], basis[window - 1 - i, :, i] * (i != window - 1 - i)[:, None]
    shape = [-1 if k == axis else 1 for k in range(like.ndim)]
    values = jnp.asarray(np.stack([near.T, far.T], axis=1), like.dtype)
    return [(values[p, 0].reshape(shape), values[p, 1].reshape(shape)) for p in (0, 1)]
