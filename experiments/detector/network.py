"""The detector's network as it is trained."""

from typing import NamedTuple

import jax

from experiments.detector.loss import detection_loss
from jclnf.detect._network import SHAPES, look
from jclnf.experts import Layer, Shapes


class Network(NamedTuple):
    """See `experiments.training.trunk.train.Trainable`."""

    name: str = "detector"

    @property
    def shapes(self) -> Shapes:
        return SHAPES

    def look(self, images: jax.Array, layer: Layer) -> jax.Array:
        return look(images, layer)

    def loss(self, output: jax.Array, labels: jax.Array, side: int) -> jax.Array:
        return detection_loss(output, labels, side)
