"""Calibrates the covariances of a model's landmarks on annotated faces, see
`jclnf.fitting.Uncertainty`."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Real

from jclnf.fitting import FitResult, Model, Uncertainty, fit
from jclnf.train._examples import Batch
from jclnf.train._faces import Faces
from jclnf.train._fit_examples import FitExamples, repeated
from jclnf.train._validation import map_chunks

SPREADS, FLOORS = (1.0, 2.0, 4.0, 8.0, 16.0), (0.005, 0.02, 0.08, 0.3, 1.2)
"""Values of two of the numbers that are tried; the other two are fitted for each pair of them."""
FREEDOM = 4.0
"""Degrees of freedom of the Student distribution that is fitted: few faces are far off."""
SHARE = 0.9
"""The ellipses that are sized: those that shall hold this share of the truths."""
CALIBRATED_ON = 500
"""Fits to calibrate on."""
_STEPS, _RATE = 120, 0.1


class Measured(NamedTuple):
    """Fits of `b` faces, and how far off they are."""

    covariances: Float[Array, "p b n 2 2"]
    """For each pair of `SPREADS` and `FLOORS`, with inflation 1 and residual 0, square pixels."""
    scales: Float[Array, " b"]
    """Pixels per millimetre."""
    errors: Float[Array, "b n 2"]
    """(x, y) in pixels."""

    def of(self, chosen: Any) -> "Measured":
        """Some of the faces."""
        return Measured(self.covariances[:, chosen], self.scales[chosen], self.errors[chosen])

    def covariance(self, pair: Any, inflation: Any, residual: Any) -> Float[Array, "b n 2 2"]:
        """The covariances with these numbers."""
        unit = jnp.eye(2) * self.scales[:, None, None, None] ** 2
        return inflation * self.covariances[pair] + residual * unit


def calibrate_uncertainty(
    model: Model, faces: Faces, mirror: np.ndarray, *, effort: float = 1.0, seed: int = 0
) -> Uncertainty:
    """The calibration of a model: `dataclasses.replace(model, uncertainty=...)` has it.

    Args:
        model: trained.
        faces: of people that it has not learned from.
        mirror: `(n,)` index of each landmark's mirror image.
        effort: factor on the number of fits, `CALIBRATED_ON`.
        seed: of the boxes that the fits begin from.
    """
    each = -(-max(round(CALIBRATED_ON * effort), len(faces)) // len(faces))
    examples = repeated(FitExamples(faces, mirror, {"given": 1.0}), each, seed=seed)
    covariances, scales, errors = map_chunks(_measured, model, examples, 64)
    arrays = map(jnp.asarray, (np.moveaxis(covariances, 1, 0), scales, errors))
    return calibrated(Measured(*arrays))[1]


@jax.jit
def _measured(model: Model, batch: Batch) -> tuple[Array, Array, Array]:
    def one(example: Batch) -> tuple[Array, Array, Array]:
        found, covariances = with_pairs(model, example["image"], example["box"])
        return covariances, found.pose.scale, example["points"] - found.landmarks

    return jax.lax.map(one, batch)


def with_pairs(
    model: Model, image: Real[Array, "h w"], box: Float[Array, "4"]
) -> tuple[FitResult, Float[Array, "p n 2 2"]]:
    """The fit of a face, and its covariances as in `Measured`."""
    params = model.defaults.replace(uncertainty=True)
    pairs = jnp.array([(spread, floor) for spread in SPREADS for floor in FLOORS])

    def with_pair(pair: Float[Array, "2"]) -> FitResult:
        by = Uncertainty(jnp.ones(()), jnp.zeros(()), *pair)
        return fit(dataclasses.replace(model, uncertainty=by), image, box, params)

    several = jax.vmap(with_pair)(pairs)
    assert several.covariance is not None
    return jax.tree.map(lambda array: array[0], several), several.covariance


def calibrated(faces: Measured) -> tuple[int, Uncertainty]:
    """The four numbers of greatest likelihood, then sized so that `SHARE` of the truths lie within
    as many ellipses; and the pair that they belong to."""
    optimiser = optax.adam(_RATE)

    def best(pair: Array) -> tuple[Array, Array]:
        def loss(logs: Array) -> Array:
            return -_log_density(faces.covariance(pair, *jnp.exp(logs)), faces.errors).mean()

        def step(carry: Any, _: None) -> tuple[Any, None]:
            logs, state = carry
            moves, state = optimiser.update(jax.grad(loss)(logs), state)
            return (optax.apply_updates(logs, moves), state), None

        logs = jnp.zeros(2)
        (logs, _), _ = jax.lax.scan(step, (logs, optimiser.init(logs)), None, length=_STEPS)
        return loss(logs), jnp.exp(logs)

    losses, numbers = jax.jit(lambda: jax.lax.map(best, jnp.arange(len(faces.covariances))))()
    pair = int(jnp.argmin(losses))
    inflation, residual = numbers[pair]
    distances = np.asarray(mahalanobis(faces.covariance(pair, inflation, residual), faces.errors))
    factor = float(np.quantile(distances, SHARE)) / limit(SHARE)
    spread, floor = SPREADS[pair // len(FLOORS)], FLOORS[pair % len(FLOORS)]
    sized = (factor * inflation, factor * residual, spread, floor)
    return pair, Uncertainty(*(jnp.float32(number) for number in sized))


def _log_density(
    covariance: Float[Array, "*b 2 2"], errors: Float[Array, "*b 2"]
) -> Float[Array, "*b"]:
    """Of Student's distribution with these covariances, but for a constant."""
    determinant = covariance[..., 0, 0] * covariance[..., 1, 1] - covariance[..., 0, 1] ** 2
    squared = mahalanobis(covariance, errors)
    return -0.5 * jnp.log(determinant) - (FREEDOM + 2) / 2 * jnp.log1p(squared / FREEDOM)


def mahalanobis(
    covariance: Float[Array, "*b 2 2"], errors: Float[Array, "*b 2"]
) -> Float[Array, "*b"]:
    """Squared distance in standard deviations."""
    (a, b), (_, d) = (jnp.moveaxis(covariance[..., i, :], -1, 0) for i in range(2))
    x, y = errors[..., 0], errors[..., 1]
    return (d * x**2 - 2 * b * x * y + a * y**2) / (a * d - b**2)


def limit(share: float) -> float:
    """Squared distance within which a Gaussian in the plane has this share."""
    return float(-2 * np.log(1 - share))
