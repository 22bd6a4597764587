"""Training of CCNF patch experts by gradient descent.

Baltrusaitis, Robinson, Morency (ICCVW 2013, section 3.1.2) maximise the field's likelihood for each
expert apart. Here all experts of a scale are trained together, for what a fit makes of them: their
response map, as a distribution over the window, against a narrow Gaussian at the truth.
"""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jclnf.experts import (
    CCNF,
    ccnf_responses,
    covariances,
    neurons_side_by_side,
    to_blocks,
)
from jclnf.geometry import sample_areas, similarity_between, similarity_matrix
from jclnf.train import Progress, TrainConfig
from jclnf.train._examples import Batch, Example, Perturbation, perturbed, warped
from jclnf.train._faces import Posed
from jclnf.train._loop import train

VIEWS = ((0.0, -0.5, 0.0), (0.0, 0.0, 0.0), (0.0, 0.5, 0.0))
"""Head rotations (Euler angles, radians) with experts of their own."""
SUPPORT = 11
_TARGET_WIDTH = 1.0  # of the Gaussian at the truth, reference pixels
_FLOOR = 1e-4  # of a response over its largest: its logarithm must stay finite


@dataclasses.dataclass(frozen=True)
class AreaExamples:
    """Makes what CCNF experts of one scale see.

    Attributes:
        posed: the faces.
        scaling: reference pixels per millimetre.
        perturbation: how far from the truth the windows are placed.
    """

    posed: Posed
    scaling: float
    perturbation: Perturbation

    def __len__(self) -> int:
        return len(self.posed.faces)

    def __call__(self, face: int, rng: np.random.Generator) -> Example:
        """`image` `(side, side)` uint8 in the reference frame, `landmarks` `(n, 2)` where the
        windows are centred and `points` `(n, 2)` the truth, both in it, and the `view`."""
        model = self.posed.model
        state = perturbed(self.posed, face, self.perturbation, rng)
        base = state.landmarks
        to_reference = similarity_matrix(
            similarity_between(base, self.scaling * state.shape[:, :2])
        )
        side = round(self.scaling * 1.6 * np.ptp(model.mean[:, 0]))
        centroid = base.mean(0)
        image = warped(self.posed.faces.images[face], centroid, np.linalg.inv(to_reference), side)
        middle = (side - 1) / 2
        truth = self.posed.faces.points[face]
        yaw = np.arcsin(np.clip(state.matrix[0, 2], -1, 1))
        return {
            "image": image,
            "landmarks": ((base - centroid) @ to_reference.T + middle).astype(np.float32),
            "points": ((truth - centroid) @ to_reference.T + middle).astype(np.float32),
            "view": np.argmin([abs(yaw - view[1]) for view in VIEWS]).astype(np.int32),
        }


class LearnedCCNF(eqx.Module):
    """Parameters of one scale's experts; positive ones as their logarithms."""

    weights: Float[Array, "v n q p"]
    bias: Float[Array, "v n q"]
    alpha: Float[Array, "v n q"]
    beta: Float[Array, "v n b"]


def train_ccnf(
    posed: Posed,
    scaling: float,
    window: int,
    perturbation: Perturbation,
    config: TrainConfig,
    *,
    neurons: int = 5,
    checkpoint: Path | None = None,
    quiet: bool = False,
) -> LearnedCCNF:
    """Train the CCNF experts of one scale.

    Args:
        posed: the faces, with their mirror images.
        scaling: reference pixels per millimetre.
        window: side of the response maps in reference pixels.
        perturbation: how far from the truth a fit is when it comes to this scale.
        config: how long and how fast.
        neurons: neurons of each expert.
        checkpoint, quiet: as for `Progress`.
    """
    n = posed.faces.points.shape[1]
    keys = jax.random.split(jax.random.key(config.seed), 2)
    shape = (len(VIEWS), n, neurons)
    first = LearnedCCNF(
        weights=jax.random.normal(keys[0], (*shape, SUPPORT**2)),
        bias=jnp.full(shape, -2.0),
        alpha=jnp.zeros(shape),
        beta=jnp.full((len(VIEWS), n, 1), -1.0),
    )
    blocks = jnp.asarray(to_blocks(neighbours(window)[None], window)[0])

    def objective(learned: LearnedCCNF, batch: Batch) -> tuple[Array, None]:
        alpha = jnp.exp(learned.alpha)
        beta = jnp.exp(learned.beta)
        fields = covariances(alpha, beta, blocks, window)

        def one(image: Array, landmarks: Array, points: Array, view: Array) -> Array:
            area = window + SUPPORT - 1
            upright = jnp.array([1.0, 0.0])
            areas = sample_areas(image.astype(jnp.float32), landmarks, upright, area)
            weights = learned.weights[view].reshape(n, neurons, SUPPORT, SUPPORT)
            responses = ccnf_responses(
                areas,
                *neurons_side_by_side(
                    weights, jnp.ones((n, neurons)), learned.bias[view], alpha[view]
                ),
                fields,
                view,
                window,
            )
            return response_loss(responses, points - landmarks + (window - 1) / 2)

        args = (batch[key] for key in ("image", "landmarks", "points", "view"))
        return jax.vmap(one)(*args).mean(), None

    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(config.schedule(len(posed.faces)))
    )
    trained = train(
        first,
        objective,
        optimiser,
        AreaExamples(posed, scaling, perturbation),
        config,
        Progress(f"CCNF experts at {scaling:g} px/mm", checkpoint, quiet=quiet),
    )
    learned: LearnedCCNF = trained.learned
    return learned


def response_loss(
    responses: Float[Array, "n k k"], points: Float[Array, "n 2"]
) -> Float[Array, ""]:
    """Cross-entropy of response maps, as distributions, against Gaussians at `points` (map px).

    Landmarks outside their window count 0.
    """
    window = responses.shape[-1]
    floor = _FLOOR * responses.max((1, 2), keepdims=True) + 1e-12
    logs = jnp.log(responses + floor)
    logs = logs - jax.nn.logsumexp(logs, axis=(1, 2), keepdims=True)
    pixels = jnp.arange(window, dtype=points.dtype)
    target = jnp.exp(-((pixels - points[..., None]) ** 2) / (2 * _TARGET_WIDTH**2))
    inside = ((points > 0) & (points < window - 1)).all(-1)
    mass = jnp.where(inside, target.sum(-1).prod(-1), 1.0)
    expected = jnp.einsum("nyx,nx,ny->n", logs, target[:, 0], target[:, 1]) / mass
    return -jnp.sum(jnp.where(inside, expected, 0.0)) / len(points)


def experts_of(
    scales: list[LearnedCCNF], scalings: tuple[float, ...], windows: tuple[int, ...]
) -> CCNF:
    """Experts of what was learned at each scale."""
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *scales)
    s, v, n, q = stacked.bias.shape
    components = {
        window: np.tile(neighbours(window), (s, 1, 1, 1)) for window in set(windows) if window
    }
    return CCNF.create(
        scalings=scalings,
        weights=stacked.weights.reshape(s, v, n, q, SUPPORT, SUPPORT),
        norm_weight=np.ones((s, v, n, q)),
        bias=stacked.bias,
        alpha=np.exp(stacked.alpha),
        beta=np.exp(stacked.beta),
        components=components,
        centres=np.tile(np.array(VIEWS), (s, 1, 1)),
        visible=np.ones((s, v, n), bool),
        confidence=np.ones((s, v, n)),
    )


def neighbours(window: int) -> np.ndarray:
    """`(1, k*k, k*k)`: the component that draws each pixel to those beside, above and below it."""
    index = np.arange(window**2).reshape(window, window)
    matrix = np.zeros((window**2, window**2))
    for a, b in ((index[:, 1:], index[:, :-1]), (index[1:], index[:-1])):
        matrix[a.ravel(), b.ravel()] = matrix[b.ravel(), a.ravel()] = -1
    return (np.diag(-matrix.sum(0)) + matrix)[None]
