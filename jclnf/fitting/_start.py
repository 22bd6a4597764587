"""A learned start: the pose and shape of a face from a small image of its box.

One pass of a small network in place of fits from several head rotations. It says how the pose of
the frontal mean shape in the box is to be changed, and the shape parameters.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jclnf.errors import ModelFileError
from jclnf.experts import Layer, Shapes, check_weights, normalised, plain_layer
from jclnf.geometry import PDM, Pose, clamp, euler_to_matrix, pose_from_box, sample_square

START_SIZE = 64
"""Side in pixels of the image that the network sees."""
START_MARGIN = 1.4
"""Side of the square that is seen, in mean sides of the box."""


def start_shapes(modes: int) -> Shapes:
    """Shapes of the network's layers; the dense ones are convolutions of side 1."""
    return {
        "conv1": (3, 1, 16),
        "conv2": (3, 16, 32),
        "conv3": (3, 32, 64),
        "conv4": (3, 64, 64),
        "conv5": (3, 64, 96),
        "hidden": (1, 96 * (START_SIZE // 16) ** 2, 256),
        "out": (1, 256, 6 + modes),
    }


def start_network(x: Float[Array, "b y x 1"], layer: Layer) -> Float[Array, "b out"]:
    """The code that `decode_start` takes, from images of `START_SIZE`."""
    relu = jax.nn.relu
    for name in ("conv1", "conv2", "conv3"):
        x = relu(layer(name, x, 2))
    x = relu(layer("conv5", relu(layer("conv4", x, 1)), 2))
    x = relu(layer("hidden", x.reshape(len(x), 1, 1, -1), 1))
    return layer("out", x, 1)[:, 0, 0]


def decode_start(
    pdm: PDM, box: Float[Array, "4"], code: Float[Array, " out"]
) -> tuple[Pose, Float[Array, " m"]]:
    """Pose and shape of a network's output for a box.

    Args:
        pdm: the shape model.
        box: (x, y, w, h) in pixels.
        code: logarithm of the scale (over that of the frontal mean shape in the box), Euler
            angles, translation (over the box's mean side), shape parameters (in their standard
            deviations).
    """
    frontal = pose_from_box(pdm, box, jnp.zeros_like(code[:3]))
    side = box[2:].mean()
    pose = Pose(
        frontal.scale * jnp.exp(code[0]),
        euler_to_matrix(code[1:4]),
        frontal.translation + side * code[4:6],
    )
    return pose, clamp(pdm, code[6:] * jnp.sqrt(pdm.eigenvalues))


def start_image(image: Real[Array, "h w"], box: Float[Array, "4"]) -> Float[Array, "size size"]:
    """The image of a box as the network sees it."""
    step = START_MARGIN * box[2:].mean() / START_SIZE
    centre = box[:2] + box[2:] / 2
    return normalised(sample_square(image, centre, jnp.stack([step, 0.0 * step]), START_SIZE))


class LearnedStart(eqx.Module):
    """The start of a fit from its box."""

    kernels: dict[str, Float[Array, "..."]]
    """Arrays `<layer>.kernel` and `<layer>.bias`."""

    def __check_init__(self) -> None:
        problem = check_weights(self.kernels, start_shapes(self.n_modes))
        if problem is not None:
            raise ModelFileError("learned start", problem)

    @property
    def n_modes(self) -> int:
        """Number of shape parameters."""
        return jnp.shape(self.kernels.get("out.bias", np.zeros(6)))[0] - 6

    def __call__(
        self, pdm: PDM, image: Real[Array, "h w"], box: Float[Array, "4"]
    ) -> tuple[Pose, Float[Array, " m"]]:
        """The pose and shape to start a fit from.

        Args:
            pdm: the shape model that the start was trained with.
            image: grey levels.
            box: (x, y, w, h) in pixels.
        """
        x = start_image(image, box)[None, :, :, None]
        return decode_start(pdm, box, start_network(x, plain_layer(self.kernels))[0])
