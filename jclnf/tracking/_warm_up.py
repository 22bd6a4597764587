"""Compiling ahead, for those who cannot wait in the first frame."""

import math

import jax
import numpy as np

from jclnf.fitting import Model, fit
from jclnf.params import FitParams
from jclnf.tracking._tracker import Tracker


def warm_up(model: Model | Tracker, size: float, params: FitParams | None = None) -> None:
    """Compile now what the first fit of a face of a size would have to wait for.

    It is for NumPy images with room around the face. A face near to the border of its image, or
    one of another size, may be cropped to another size and then compiles once more.

    Args:
        model: what `jclnf.fit` will be called with; or a `Tracker`, whose `step` will be called
            with uint8 frames.
        size: width and height of the face's box in pixels.
        params: settings that `jclnf.fit` will be called with; `model.defaults` if not given.

    Raises:
        BoxError, ParamsError: as `jclnf.fit` does.
    """
    side = 4 * math.ceil(size)
    image = np.full((side, side), 128, np.uint8)
    box = np.array([1.5 * size, 1.5 * size, size, size])
    if isinstance(model, Tracker):
        model._fits.warm_up(image, box)
    else:
        jax.block_until_ready(fit(model, image, box, params))
