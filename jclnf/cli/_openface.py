"""OpenFace's table of each image, for `jclnf fit`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jclnf.fitting import Model
from jclnf.openface import Measured, OpenFaceTable, measure
from jclnf.outputs import write_bytes
from jclnf.space import EYES, Camera


class PictureTables:
    """Measures faces in space, and writes the table of an image's faces.

    Args:
        model: what the faces are fitted with.
        focal, centre: the camera, see `jclnf.space.Camera.assumed`.
        full_precision: all digits instead of OpenFace's decimals.
    """

    def __init__(
        self,
        model: Model,
        focal: tuple[float, float] | None,
        centre: tuple[float, float] | None,
        *,
        full_precision: bool = False,
    ) -> None:
        self._focal, self._centre = focal, centre
        self._table = OpenFaceTable(
            model.pdm.n_landmarks,
            model.pdm.n_modes,
            video=False,
            gaze={part.name for part in model.parts} >= set(EYES),
            full_precision=full_precision,
        )

    def measure(self, result: Any, picture: np.ndarray) -> Measured:
        """Head pose, landmarks in space and gaze of a face in a picture `(h, w)`."""
        height, width = picture.shape
        camera = Camera.assumed(width, height, self._focal, self._centre)
        return measure([result], camera, batch=1)[0]

    def write(self, path: Path, faces: list[tuple[int, Any, Measured]]) -> None:
        """Write the faces' numbers, fits and measures; a table without rows if there are none.

        A fit that is not finite has the confidence 0 and zeros, as what was not seen has in
        OpenFace's tables of videos. Raises OSError.
        """
        lines = [self._table.header]
        for number, result, face in faces:
            # Without any means to tell, a fit that did not fail is as good as it gets.
            confidence = float(result.success if result.confidence is None else result.confidence)
            if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(face)):
                lines.append(self._table.row((number, confidence), face))
            else:
                lines.append(self._table.row((number, 0.0), None))
        write_bytes(path, "".join(lines).encode())
