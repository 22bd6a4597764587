"""The responses of continuous conditional neural fields, landmarks side by side.

A processor multiplies vectors of numbers, and reads them fastest from where they lie in a row. So
landmarks, which all go through the same arithmetic, lie side by side: in blocks of `LANES`, whose
axis is the first of an array, with a landmark's place in its block as the last. Nothing is then
summed, shifted or mirrored within a vector, whatever the window and the number of neurons.
"""

import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jclnf.experts._patches import inverse_root, patch_columns
from jclnf.geometry import (
    bilinear,
    fence,
    inverses,
    pairwise_sum,
    precise,
    product,
    with_transpose,
)

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
        covariances: several, see the function of that name.
        at: which of those is Sigma.
        window: side `k` of a map.
    """
    # Single precision would lose digits to a common grey level. And what is not finite must stay
    # with its landmark.
    mean = areas.mean(axis=(1, 2), keepdims=True)
    finite = jnp.isfinite(mean)
    blocks = fence(side_by_side(jnp.where(finite, areas - mean, 0.0)))
    projections, scale = correlate(blocks, weights), fence(patch_scale(blocks, window))
    bias, gain = fence(bias), fence(gain)
    neurons = [
        gain[:, q, None, None] * jax.nn.sigmoid(projections[:, q] * scale + bias[:, q, None, None])
        for q in range(weights.shape[1])
    ]
    response = smooth(covariances, at, pairwise_sum(neurons))
    response = response - jnp.minimum(response.min(axis=(1, 2), keepdims=True), 0.0)
    return jnp.where(finite, apart(fence(response))[: len(areas)], jnp.nan)


def side_by_side(array: Float[Array, "..."], axis: int = 0) -> Float[Array, "..."]:
    """An array whose `axis` is landmarks in blocks of `LANES`, filled up with zeros: the axis is
    then that of blocks, and a landmark's place in its block the last."""
    widths = [(0, -size % LANES if i == axis else 0) for i, size in enumerate(array.shape)]
    shape = *array.shape[:axis], -1, LANES, *array.shape[axis + 1 :]
    return jnp.moveaxis(jnp.pad(array, widths).reshape(shape), axis + 1, -1)


def apart(array: Float[Array, "b *s l"]) -> Float[Array, "_ *s"]:
    """The landmarks of `side_by_side`, with those that were filled up, as the first axis."""
    blocks, *rest, lanes = array.shape
    return jnp.moveaxis(array, -1, 1).reshape(blocks * lanes, *rest)


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
    return lambda slope: _spread(slope, weights), lambda slope: correlate(areas, slope)


def _spread(
    slope: Float[Array, "b q k k l"], weights: Float[Array, "b q support support l"]
) -> Float[Array, "b a a l"]:
    """What `correlate` makes of areas, transposed: to each pixel of a patch its weight."""
    support = weights.shape[-2]
    beyond = support - 1
    side = slope.shape[-2] + beyond
    wide = jnp.pad(fence(slope), [(0, 0)] * 3 + [(beyond, beyond), (0, 0)])
    weights = fence(weights)
    # A row of the patch at a time, and then the rows: fewer products with what is beyond.
    rows = [
        [
            wide[:, q, None, :, beyond - x : beyond - x + side] * weights[:, q, :, x, None, None]
            for x in range(support)
        ]
        for q in range(weights.shape[1])
    ]
    high = jnp.pad(fence(_sum_in_turns(rows)), [(0, 0)] * 2 + [(beyond, beyond)] + [(0, 0)] * 2)
    return pairwise_sum([high[:, y, beyond - y : beyond - y + side] for y in range(support)])


@bilinear(_patch_products, _transposes)
def correlate(
    areas: Float[Array, "b a a l"], weights: Float[Array, "b q support support l"]
) -> Float[Array, "b q k k l"]:
    """Products of each patch of an area with each neuron's weights.

    A sum over the pixels of a patch, of whole windows of the area times a weight: compiled, a few
    loops without any copy of patches.
    """
    support = weights.shape[-2]
    window = areas.shape[-2] - support + 1
    weights = fence(weights)
    rows = [
        [
            areas[:, None, y : y + window, x : x + window] * weights[:, :, y, x, None, None]
            for x in range(support)
        ]
        for y in range(support)
    ]
    return fence(_sum_in_turns(rows))


def _sum_in_turns(rows: list[list[Array]]) -> Array:
    """Their sum, added pairwise in loops of two rows each: so the factors that stay the same from
    pixel to pixel stay in a processor's registers, and it reads one number for a product, not two.
    """
    sums = [pairwise_sum(row) for row in rows]
    sums = [pairwise_sum(sums[i : i + 2]) for i in range(0, len(sums), 2)]
    while len(sums) > 1:
        # The second, two rows or the sum of fenced ones and two, is computed where it is added.
        pairs = zip(sums[::2], sums[1::2], strict=False)
        sums = [fence(a) + b for a, b in pairs] + sums[len(sums) & ~1 :]
    return sums[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def patch_scale(areas: Float[Array, "b a a l"], window: int) -> Float[Array, "b k k l"]:
    """One over the norm of each patch less its mean, 0 where it is flat, so that no more than
    rounding is left of it."""
    support = areas.shape[1] - window + 1
    # Of each run of pixels down a column, and then of the runs side by side: nothing large is
    # ever subtracted from something large.
    runs = fence(pairwise_sum(_shifted(areas, window, 1)) / support)
    within = fence(pairwise_sum([(rows - runs) ** 2 for rows in _shifted(areas, window, 1)]))
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
        down = fence(pairwise_sum(_shifted(array, window, 1)))
        return pairwise_sum(_shifted(down, window, 2))

    def transpose(slope: Array) -> Array:
        beyond = (support - 1, support - 1)
        return sums(jnp.pad(slope, [(0, 0), beyond, beyond, (0, 0)]))

    return with_transpose(sums, sums, transpose, array)


def _shifted(array: Array, window: int, axis: int) -> list[Array]:
    """All windows of an array along an axis, by where they begin."""
    count = array.shape[axis] - window + 1
    return [lax.slice_in_dim(array, d, d + window, axis=axis) for d in range(count)]


def covariances(
    alpha: Float[Array, "*n q"],
    beta: Float[Array, "*n c"],
    components: Float[Array, "c 4 h h"] | None,
    window: int,
) -> Float[Array, "..."]:
    """The fields' covariances `Sigma = (2 (sum_q alpha_q I + sum_c beta_c C_c))^-1`.

    Returns:
        Array (*m, b, numbers, l) for neurons (*m, n, q), the n landmarks `side_by_side`: the blocks
        of Sigma in `symmetric_bases`, row by row and one after the other. Without components
        (*m, b, l), the one number on its diagonal. Experts without neurons get the identity.
    """
    axis = alpha.ndim - 2
    precision = side_by_side(2 * alpha.sum(axis=-1), axis)
    precision = jnp.where(precision == 0, 1.0, precision)
    if components is None or len(components) == 0:
        return 1 / precision
    summands = [
        # A block that has two bases is the mean of what it is in each.
        precise("vphi,cphk,vpkj->cij", basis, components, basis).reshape(len(components), -1)
        / len(basis)
        for basis in (each.astype(components.dtype) for each in symmetric_bases(window))
    ]
    identity = np.concatenate([np.eye(side).reshape(1, -1) for _, side, _ in _layout(window)], 1)
    matrices = jnp.concatenate([jnp.concatenate(summands, axis=1), identity.astype(alpha.dtype)])
    factors = jnp.concatenate([2 * side_by_side(beta, axis), precision[..., None, :]], axis=-2)
    found = _inverse_sums(factors.reshape(-1, *factors.shape[-3:]), matrices, window)
    return found.reshape(*factors.shape[:-2], *found.shape[-2:])


def _layout(window: int) -> list[tuple[int, int, int]]:
    """Of each of a covariance's blocks: where it begins in the axis of all, its side, and to how
    many vectors it applies."""
    shapes = [(basis.shape[-1], basis.shape[0]) for basis in symmetric_bases(window)]
    begins = np.cumsum([0, *(side**2 for side, _ in shapes)])
    return [(int(begin), *shape) for begin, shape in zip(begins[:-1], shapes, strict=True)]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _inverse_sums(
    factors: Float[Array, "m b c l"], matrices: Float[Array, "c q"], window: int
) -> Float[Array, "m b q l"]:
    """The inverses of sums of factors times matrices, whose blocks lie as those of `covariances`.

    One after the other along the first axis: of all at once, the copies that elimination makes
    would be tens of megabytes.
    """
    m, b, _, lanes = factors.shape

    def some(i: Int[Array, ""], found: Array) -> Array:
        *four, mixed = _as_blocks(precise("bcl,cq->bql", factors[i], matrices), window)
        blocks = [*_inverted(four), *_inverted([mixed])]
        return found.at[i].set(_in_one_axis(blocks, lanes))

    # Not `lax.map`, whose stacked results JAX cannot lower while it evaluates at compile time, as
    # models are prepared. The rules below may use it: such a model has no derivatives.
    return lax.fori_loop(0, m, some, jnp.zeros((m, b, matrices.shape[1], lanes), factors.dtype))


@_inverse_sums.defjvp
def _inverse_sums_jvp(window: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # Of all that derivatives need, only what is there anyway is kept: `inverse`.
    factors, matrices = primals
    inverse = _inverse_sums(factors, matrices, window)

    def between(inverse: Array, change: Array, *, back: bool = False) -> Array:
        both = zip(*(_as_blocks(each, window) for each in (inverse, change)), strict=True)
        blocks = [(a.mT if back else a, change) for a, change in both]
        return _in_one_axis([-product(product(a, b), a) for a, b in blocks], inverse.shape[-1])

    def joined(of_factors: Array, of_matrices: Array) -> Array:
        return jnp.concatenate([of_factors.reshape(-1), of_matrices.reshape(-1)])

    def forward(both: Array) -> Array:
        of_factors = both[: factors.size].reshape(factors.shape)
        of_matrices = both[factors.size :].reshape(matrices.shape)

        def some(each: tuple[Array, ...]) -> Array:
            inverse, factors, change = each
            changes = precise("bcl,cq->bql", change, matrices)
            return between(inverse, changes + precise("bcl,cq->bql", factors, of_matrices))

        return lax.map(some, (inverse, factors, of_factors))

    def backward(slope: Array) -> Array:
        def some(total: Array, each: tuple[Array, ...]) -> tuple[Array, Array]:
            inverse, factors, slope = each
            of_sums = between(inverse, slope, back=True)
            total = total + precise("bcl,bql->cq", factors, of_sums)
            return total, precise("bql,cq->bcl", of_sums, matrices)

        begin = jnp.zeros_like(matrices)
        of_matrices, of_factors = lax.scan(some, begin, (inverse, factors, slope))
        return joined(of_factors, of_matrices)

    return inverse, with_transpose(forward, forward, backward, joined(*tangents))


def _as_blocks(array: Float[Array, "b q l"], window: int) -> list[Float[Array, "n _ _"]]:
    blocks, _, lanes = array.shape
    return [
        apart(array[:, begin : begin + side**2].reshape(blocks, side, side, lanes))
        for begin, side, _ in _layout(window)
    ]


def _in_one_axis(blocks: list[Float[Array, "n _ _"]], lanes: int) -> Float[Array, "b q l"]:
    flat = [block.reshape(len(block) // lanes, lanes, block.shape[-1] ** 2) for block in blocks]
    return jnp.concatenate([jnp.moveaxis(each, 1, -1) for each in flat], axis=1)


def _inverted(blocks: list[Float[Array, "n _ _"]]) -> list[Float[Array, "n _ _"]]:
    """Their inverses, taken together: each is filled up to the side of the largest."""
    sides = [block.shape[-1] for block in blocks]
    largest = max(sides)
    if largest == 0:
        return blocks
    filled = [
        jnp.pad(block, [(0, 0), *[(0, largest - side)] * 2])
        + np.diag(np.arange(largest) >= side).astype(block.dtype)[None]
        for block, side in zip(blocks, sides, strict=True)
    ]
    found = inverses(jnp.stack(filled, axis=1))
    return [found[:, g, :side, :side] for g, side in enumerate(sides)]


def smooth(
    covariances: Float[Array, "m b ..."], at: Any, field: Float[Array, "b k k l"]
) -> Float[Array, "b k k l"]:
    """`Sigma vec(field)` of each map, Sigma the one at `at` of `covariances`."""
    if covariances.ndim == 3:
        return covariances[at][:, None, None] * field
    blocks, window, _, lanes = field.shape
    pixels = fence(field).reshape(blocks, window**2, lanes)
    coefficients = fence(_in_basis(pixels, True))
    filtered = fence(_filtered(covariances, coefficients, at))
    return fence(_in_basis(filtered, False)).reshape(field.shape)


def _vectors(coefficients: Float[Array, "b p l"]) -> list[tuple[int, Float[Array, "b _ _ l"]]]:
    """Where each block of a covariance begins, see `_layout`, and the one or two vectors that it
    applies to."""
    blocks, pixels, lanes = coefficients.shape
    layout = _layout(math.isqrt(pixels))
    ends = np.cumsum([side * copies for _, side, copies in layout])
    return [
        (begin, coefficients[:, end - side * copies : end].reshape(blocks, side, copies, lanes))
        for end, (begin, side, copies) in zip(ends, layout, strict=True)
    ]


def _block_products(
    covariances: Float[Array, "m b q l"], coefficients: Float[Array, "b p l"], at: Any
) -> Float[Array, "b p l"]:
    chosen, products = covariances[at], []
    for begin, vectors in _vectors(coefficients):
        blocks, side, copies, lanes = vectors.shape
        block = chosen[:, begin : begin + side**2].reshape(blocks, side, side, lanes)
        # One vector at a time: XLA's sums are slow beside an axis of two.
        each = [jnp.sum(block * vectors[:, :, None, v], axis=1) for v in range(copies)]
        products.append(jnp.stack(each, axis=2))
    return _joined(products)


def _joined(vectors: list[Float[Array, "b _ _ l"]]) -> Float[Array, "b p l"]:
    """The coefficients that have these `_vectors`."""
    flat = [v.reshape(v.shape[0], v.shape[1] * v.shape[2], v.shape[3]) for v in vectors]
    return jnp.concatenate(flat, axis=1)


@bilinear(_block_products)
def _filtered(
    covariances: Float[Array, "m b q l"], coefficients: Float[Array, "b p l"], at: Any
) -> Float[Array, "b p l"]:
    """Products of the symmetric blocks at `at` with the vectors of coefficients. They are read from
    where they are: a copy would take as long as the products."""

    def column(begin: int, side: int) -> Array:
        # Not of `covariances[at]`, which would be one copy with many readers.
        zero = jnp.zeros_like(at)
        starts = (at, zero, jnp.full_like(at, begin), zero)
        sizes = (1, covariances.shape[1], side, covariances.shape[-1])
        return lax.dynamic_slice(covariances, starts, sizes)[0][:, :, None]

    products = []
    for begin, vectors in _vectors(coefficients):
        side = vectors.shape[1]
        terms = [column(begin + j * side, side) * vectors[:, j, None] for j in range(side)]
        products.append(pairwise_sum(terms) if terms else vectors)
    return _joined(products)


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


@lru_cache
def symmetric_bases(window: int) -> tuple[np.ndarray, ...]:
    """Orthonormal bases for matrices that also stay the same when x and y are exchanged.

    Of the four blocks in `mirror_basis`, even-even and odd-odd then fall into two each, for what
    stays the same when x and y are exchanged and for what changes its sign; even-odd and odd-even
    are one, applied to two vectors.

    Returns:
        For each of the five blocks, its basis or the two that it has: array
        (1 or 2, 4, half * half, side), in the coordinates of the four blocks, with
        `half = (window + 1) // 2`. In all there are `window ** 2` functions.
    """
    half, odd = (window + 1) // 2, window // 2
    pairs = np.eye(half**2).reshape(half, half, half**2)
    parities = np.eye(4)[:, :, None, None]

    def exchanged(side: int, sign: int) -> np.ndarray:
        i, j = np.triu_indices(side, k=0 if sign > 0 else 1)
        lengths = np.where(i == j, 2.0, np.sqrt(2.0))
        return (pairs[i, j] + sign * pairs[j, i]).T / lengths

    alone = [parities[c] * exchanged(n, s) for c, n in ((0, half), (3, odd)) for s in (1, -1)]
    mixed = [pairs[:, :odd], pairs[:odd].swapaxes(0, 1)]
    both = [parities[c] * p.reshape(-1, half**2).T for c, p in zip((1, 2), mixed, strict=True)]
    return *(basis[None] for basis in alone), np.stack(both)


@lru_cache
def _symmetric_functions(window: int) -> np.ndarray:
    """The functions of `symmetric_bases` at the pixels: an orthogonal matrix (pixel, function)."""
    mirrored = mirror_basis(window)
    products = np.einsum("yci,xdj->yxcdij", mirrored, mirrored).reshape(window**2, -1)
    bases = [np.moveaxis(b, 0, -1).reshape(products.shape[1], -1) for b in symmetric_bases(window)]
    return products @ np.concatenate(bases, axis=1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _in_basis(array: Float[Array, "b p l"], forward: bool) -> Float[Array, "b p l"]:
    """Coefficients in the basis of `_symmetric_functions` of values at pixels; or, not forward, the
    values that have these coefficients."""
    functions = _symmetric_functions(math.isqrt(array.shape[1]))
    matrix = functions.T if forward else functions
    # Of a pixel and its mirror images, eight at most.
    count = np.count_nonzero(matrix, axis=1).max()
    index = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(matrix, index, axis=1).astype(array.dtype)
    return pairwise_sum([array[:, index[:, i]] * values[None, :, i, None] for i in range(count)])


@_in_basis.defjvp
def _in_basis_jvp(forward: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    def function(array: Array) -> Array:
        return _in_basis(array, forward)

    def transpose(array: Array) -> Array:
        return _in_basis(array, not forward)

    return function(*primals), with_transpose(function, function, transpose, *tangents)
