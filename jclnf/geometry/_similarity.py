"""Similarities of the plane, and boxes of points: the same functions for NumPy and for JAX arrays.

A similarity without translation is the pair `(a, b)` of the matrix `[[a, -b], [b, a]]`, which turns
and scales, as a product with the complex number `a + i b` does. Points are (x, y).
"""

from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float

Numbers = TypeVar("Numbers", Array, np.ndarray)
"""Arrays of either library; what is computed from them is of the same."""


def similarity_between(
    source: Float[Numbers, "n 2"], target: Float[Numbers, "n 2"], *, least_squares: bool = False
) -> Float[Numbers, "2"]:
    """The similarity `(a, b)` that turns and scales the centred `source` onto the centred `target`.

    The angle is that of the least-squares rotation (Kabsch), in complex numbers that of
    `sum conj(source) target`. A shape without extent gives the angle 0 and the scale 0.

    Args:
        source, target: corresponding points.
        least_squares: take the scale that leaves the smallest sum of squared distances, instead of
            the ratio of the root mean square distances from the centroid.
    """
    xp = _library(source)
    source = source - source.mean(0, keepdims=True)
    target = target - target.mean(0, keepdims=True)
    cosine = xp.sum(source * target)
    sine = xp.sum(source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0])
    squared = xp.stack([cosine**2 + sine**2, xp.sum(source**2), xp.sum(target**2)])
    regular = xp.all(squared > 0)
    correlation, source_size, target_size = xp.sqrt(xp.where(regular, squared, 1.0))
    rotation = xp.stack([xp.where(regular, cosine, 1.0), xp.where(regular, sine, 0.0)])
    size = correlation / source_size if least_squares else target_size
    return xp.where(regular, size / source_size, 0.0) * (rotation / correlation)


def invert_similarity(similarity: Float[Numbers, "2"]) -> Float[Numbers, "2"]:
    """The inverse `(a, -b) / (a^2 + b^2)` of a similarity; infinite for a zero one."""
    a, b = similarity
    return _library(similarity).stack([a, -b]) / (a**2 + b**2)


def apply_similarity(
    similarity: Float[Numbers, "2"], points: Float[Numbers, "*p 2"]
) -> Float[Numbers, "*p 2"]:
    """Turn and scale points (or vectors) by a similarity."""
    a, b = similarity
    x, y = points[..., 0], points[..., 1]
    return _library(points).stack([a * x - b * y, b * x + a * y], axis=-1)


def similarity_matrix(similarity: Float[Numbers, "2"]) -> Float[Numbers, "2 2"]:
    """The matrix `[[a, -b], [b, a]]` of a similarity."""
    a, b = similarity
    return _library(similarity).stack([a, -b, b, a]).reshape(2, 2)


def tight_box(points: Float[Numbers, "*b n 2"]) -> Float[Numbers, "*b 4"]:
    """The box (x, y, w, h) that points span."""
    low, high = points.min(axis=-2), points.max(axis=-2)
    return _library(points).concatenate([low, high - low], axis=-1)


def _library(array: Any) -> Any:
    """`numpy` or `jax.numpy`."""
    return array.__array_namespace__()
