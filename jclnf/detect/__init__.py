"""Face detectors behind one interface, whose boxes mean what a fit's box means."""

from typing import Protocol, runtime_checkable

import numpy as np

from jclnf.detect.haar import HaarDetector

__all__ = ["Detector", "HaarDetector"]


@runtime_checkable
class Detector(Protocol):
    """Anything that finds faces: a function or object called with a picture."""

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """Return the boxes of all faces, the largest first.

        Args:
            grey: `(h, w)` uint8, upright.

        Returns:
            `(k, 4)` float64, x, y, w, h in pixels of `grey`; k may be 0. A box is tight around the
            face outline (eyebrows to chin, jaw to jaw) as that of `fit`, and may reach beyond the
            picture. A detector whose own boxes mean something else corrects them.
        """
        ...
