"""The folder of a training: its configuration, its checkpoints and its curves."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.errors import TrainingError
from jclnf.outputs import make_folder, write_bytes
from jclnf.train._curves import write_curves
from jclnf.train._faces import Faces
from jclnf.train._loop import History, Progress


class RunDirectory:
    """Keeps a training, so that it can be resumed.

    Args:
        folder: where; made if it is not there. A folder of another training is refused.
        config: what is trained.
        faces: what it is trained on.
        quiet: no progress bars.
    """

    def __init__(self, folder: Path, config: Any, faces: Faces, *, quiet: bool = False) -> None:
        self.folder = folder
        self._quiet = quiet
        self._curves: dict[str, History] = {}
        description = json.dumps(
            {
                "config": dataclasses.asdict(config),
                "faces": len(faces),
                "points": hashlib.sha256(np.round(faces.points, 3).tobytes()).hexdigest(),
            },
            indent=1,
        )
        file = folder / "training.json"
        make_folder(folder)
        if file.exists() and file.read_text() != description:
            raise TrainingError(
                f"{folder}: holds another training (other faces, or another configuration): "
                "remove the folder, or name another"
            )
        write_bytes(file, description.encode())

    def checkpoint(self, stage: str) -> Path:
        """The file of a stage's checkpoint."""
        return self.folder / f"{stage}.eqx"

    def progress(self, stage: str) -> Progress:
        """Keeps a stage's checkpoint here, and its history in `curves.csv`."""

        def on_epoch(history: History) -> None:
            self._curves[stage] = history
            write_curves(self.folder / "curves.csv", self._curves)

        return Progress(stage, self.checkpoint(stage), on_epoch, self._quiet)
