"""How far a fit is to be trusted: the probability that the face, and each landmark, is right.

A fit knows a lot about itself once it has ended: how well each landmark stands in its response, and
how usual the shape and the pose are. Of what is no face, and of landmarks that do not stand where
they belong, some of that does not go together. A network with one hidden layer turns it into
probabilities,

    q = (log(L_1 + 1e-8), ..., log(L_n + 1e-8), R[1], R[2], p / sqrt(eigenvalues))
    P = sigmoid(B relu(A q + a) + b)

with the landmark likelihoods `L`, two rows of the rotation matrix (where the head looks, and how it
is turned in the picture) and the shape parameters `p`. It has learned from fits that went right,
fits from starts that were too far off, and fits of what is no face; see `train/_confidence.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jclnf.errors import ModelFileError
from jclnf.fitting._meanshift import LIKELIHOOD_FLOOR
from jclnf.geometry import PDM, Pose

FACE_LIMIT = 10.0
"""A fit is right if its landmarks are off by less on the mean, in % of the eye distance."""
LANDMARK_LIMIT = 10.0
"""A landmark is right if it is off by less, in % of the eye distance."""

_ROTATION = 6


def characteristics(
    pdm: PDM, pose: Pose, shape: Float[Array, " m"], likelihood: Float[Array, " n"]
) -> Float[Array, " q"]:
    """What probabilities are taken from: `q` above, `n + 6 + m` numbers.

    Args:
        pdm: the shape model.
        pose, shape: where the fit ended.
        likelihood: of each landmark, see `FitResult.landmark_likelihood`.
    """
    responses = jnp.log(likelihood + LIKELIHOOD_FLOOR)
    return jnp.concatenate(
        [responses, pose.matrix[1:].reshape(-1), shape / jnp.sqrt(pdm.eigenvalues)]
    )


class Confidence(eqx.Module):
    """What a model's fits have their confidence from, calibrated for the settings it comes with.

    Axes: characteristics (`q`), hidden layer (`h`), and the face and each landmark (`r`). It is
    differentiable, with kinks where numbers of the hidden layer become 0.
    """

    hidden: Float[Array, "q h"]
    """The hidden layer's weights, the transpose of `A`."""
    hidden_bias: Float[Array, " h"]
    out: Float[Array, "h r"]
    """The last layer's weights, the transpose of `B`."""
    out_bias: Float[Array, " r"]
    threshold: Float[Array, ""]
    """A fit of at most this confidence has failed."""

    def __check_init__(self) -> None:
        shapes = [jnp.shape(array) for array in jax.tree.leaves(self)]
        inputs, h = (*shapes[0], 0, 0)[:2]
        outputs = (*shapes[2], 0, 0)[1]
        if (
            shapes != [(inputs, h), (h,), (h, outputs), (outputs,), ()]
            or outputs < 1
            or self.n_modes < 0
        ):
            raise ModelFileError(
                "confidence", f"layers of the shapes {shapes} are none of a network"
            )

    @property
    def n_landmarks(self) -> int:
        """Number of landmarks."""
        return self.out.shape[1] - 1

    @property
    def n_modes(self) -> int:
        """Number of shape parameters."""
        return self.hidden.shape[0] - _ROTATION - self.n_landmarks

    def evidence(self, given: Float[Array, " q"]) -> Float[Array, " r"]:
        """Logits of the probabilities of the face and each landmark, from `characteristics`."""
        return jax.nn.relu(given @ self.hidden + self.hidden_bias) @ self.out + self.out_bias

    def __call__(
        self, pdm: PDM, pose: Pose, shape: Float[Array, " m"], likelihood: Float[Array, " n"]
    ) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        """The probability that a fit is right, and that each of its landmarks is (see `FACE_LIMIT`
        and `LANDMARK_LIMIT`); the arguments are those of `characteristics`."""
        given = characteristics(pdm, pose, shape, likelihood)
        right = jax.nn.sigmoid(self.evidence(given))
        return right[0], right[1:]
