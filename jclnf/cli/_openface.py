"""OpenFace's table of each image, for `jclnf fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jclnf.fitting import Model
from jclnf.openface import FaceMeasurements, OpenFaceTable, measure_faces
from jclnf.outputs import write_bytes
from jclnf.space import EYES, Camera

Numbers = tuple[float, float] | None


class ImageTables:
    """Measures faces in space, and writes the table of an image's faces.

    Args:
        model: the model that the faces are fitted with.
        focal, centre: the camera, see `Camera.assumed`.
        full_precision: all digits instead of OpenFace's decimals.
        spaces: a space after each comma.
        action_units: names of the columns of action units.
    """

    def __init__(
        self,
        model: Model,
        focal: Numbers,
        centre: Numbers,
        full_precision: bool = False,
        spaces: bool = False,
        action_units: Sequence[str] = (),
    ) -> None:
        self._camera = focal, centre
        self._table = OpenFaceTable(
            model.pdm.n_landmarks,
            model.pdm.n_modes,
            video=False,
            gaze={part.name for part in model.parts} >= set(EYES),
            action_units=action_units,
            full_precision=full_precision,
            zeros=True,
            spaces=spaces,
        )

    def measure(self, result: Any, image: np.ndarray) -> FaceMeasurements:
        """Head pose, landmarks in space and gaze of a face in an image `(h, w)`."""
        height, width = image.shape
        return measure_faces([result], Camera.assumed(width, height, *self._camera), batch=1)[0]

    def write(
        self, path: Path, faces: list[tuple[int, Any, FaceMeasurements, np.ndarray | None]]
    ) -> None:
        """Write the faces' numbers, fits, measures and action units; a table without rows if there
        are none.

        A fit that is not finite has the confidence 0 and zeros, as what was not seen has in
        OpenFace's tables of videos. Raises OutputError.
        """
        lines = [self._table.header]
        for number, result, face, units in faces:
            # Without any means to tell, a fit that did not fail is as good as it gets.
            confidence = float(result.success if result.confidence is None else result.confidence)
            if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(face)):
                lines.append(self._table.row((number, confidence), face, units))
            else:
                lines.append(self._table.row((number, 0.0), None))
        write_bytes(path, "".join(lines).encode())
