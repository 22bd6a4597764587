"""How far a fit is to be trusted: the probability that the face, and each landmark, is right.

A fit knows a lot about itself once it has ended: how well each landmark stands in its response, and
how usual the shape and the pose are. Of what is no face, and of landmarks that do not stand where
they belong, some of that does not go together. A network with one hidden layer turns it into
probabilities,

    q = (log(L_1 + 1e-8), ..., log(L_n + 1e-8), R[1], R[2], p / sqrt(eigenvalues))
    P = sigmoid(B relu(A q + a) + b)

with the landmark likelihoods `L`, two rows of the rotation matrix (where the head looks, and how it
is turned in the image) and the shape parameters `p`. It has learned from fits that went right,
fits from starts that were too far off, and fits of what is no face.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jclnf.errors import ModelFileError, check_fields
from jclnf.fitting._meanshift import LIKELIHOOD_FLOOR
from jclnf.fitting._result import FitResult
from jclnf.geometry import PDM, Pose, product

FACE_LIMIT = 10.0
"""A fit is right if its landmarks are off by less on the mean, in % of the eye distance."""
LANDMARK_LIMIT = 10.0
"""A landmark is right if it is off by less, in % of the eye distance."""

_ROTATION = 6


def characteristics(
    pdm: PDM, pose: Pose, shape: Float[Array, " m"], likelihood: Float[Array, " n"]
) -> Float[Array, " q"]:
    """The network's inputs: `q` above, `n + 6 + m` numbers.

    Args:
        pdm: the shape model.
        pose, shape: where the fit ended.
        likelihood: of each landmark, see `FitResult.landmark_likelihood`.
    """
    responses = jnp.log(likelihood + LIKELIHOOD_FLOOR)
    return jnp.concatenate(
        [responses, pose.matrix[1:].reshape(-1), shape / jnp.sqrt(pdm.eigenvalues)]
    )


class AbstractConfidence(eqx.Module):
    """How sure a fit is: implement it to judge a model's fits in another way."""

    threshold: eqx.AbstractVar[Float[Array, ""]]
    """A fit of at most this confidence has failed."""

    @abstractmethod
    def judge(
        self, pdm: PDM, image: Real[Array, "h w"], result: FitResult
    ) -> tuple[Float[Array, ""], Float[Array, " n"] | None]:
        """How far the face, and each landmark, is to be trusted, 0 to 1.

        Args:
            pdm: the shape model.
            image: the image that was fitted in.
            result: where the fit ended.

        Returns:
            The confidence in the face; and that in each landmark, None if there is none.
        """

    @abstractmethod
    def misfit(self, pdm: PDM) -> str | None:
        """A reason why it cannot judge fits of this shape model, if there is one."""


class Confidence(AbstractConfidence):
    """A learned confidence, calibrated for the settings of the model that it comes with.

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

    def __check_init__(self) -> None:
        check_fields(self, "confidence")
        if self.n_landmarks < 0 or self.n_modes < 0:
            sizes = jnp.shape(self.hidden)[0], jnp.shape(self.out)[1]
            raise ModelFileError("confidence", f"a network from {sizes[0]} to {sizes[1]} numbers")

    @property
    def n_landmarks(self) -> int:
        """Number of landmarks."""
        return self.out.shape[1] - 1

    @property
    def n_modes(self) -> int:
        """Number of shape parameters."""
        return self.hidden.shape[0] - _ROTATION - self.n_landmarks

    def misfit(self, pdm: PDM) -> str | None:
        """See `AbstractConfidence.misfit`."""
        if (self.n_landmarks, self.n_modes) == (pdm.n_landmarks, pdm.n_modes):
            return None
        found = f"{self.n_landmarks} landmarks and {self.n_modes} modes"
        return f"the confidence is for {found}, not {pdm.n_landmarks} and {pdm.n_modes}"

    def judge(
        self, pdm: PDM, image: Real[Array, "h w"], result: FitResult
    ) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        """See `AbstractConfidence.judge`."""
        del image
        return self(pdm, result.pose, result.shape, result.landmark_likelihood)

    def evidence(self, given: Float[Array, " q"]) -> Float[Array, " r"]:
        """Logits of the probabilities of the face and each landmark, from `characteristics`."""
        inner = jax.nn.relu(product(given, self.hidden) + self.hidden_bias)
        return product(inner, self.out) + self.out_bias

    def __call__(
        self, pdm: PDM, pose: Pose, shape: Float[Array, " m"], likelihood: Float[Array, " n"]
    ) -> tuple[Float[Array, ""], Float[Array, " n"]]:
        """The probability that a fit is right, and that each of its landmarks is (see `FACE_LIMIT`
        and `LANDMARK_LIMIT`); the arguments are those of `characteristics`."""
        given = characteristics(pdm, pose, shape, likelihood)
        right = jax.nn.sigmoid(self.evidence(given))
        return right[0], right[1:]
