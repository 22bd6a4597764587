"""Where a run over a video stands, on disk: what it needs to go on after it was killed."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.errors import VideoError
from jclnf.outputs import check_same, discard, replacing


class Checkpoint:
    """A file beside a run's results; it is either the one before or the one after, never half.

    Args:
        path: the file.
        depends: all that the results depend on; a checkpoint of something else is refused.
    """

    def __init__(self, path: Path, depends: dict[str, Any]) -> None:
        self.path, self.depends = path, depends

    def save(self, arrays: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
        """Write the state: arrays, and what goes into JSON."""
        header = json.dumps({"depends": self.depends, **numbers})
        with replacing(self.path) as part, part.open("wb") as file:
            np.savez(file, _header=np.frombuffer(header.encode(), np.uint8), **arrays)  # type: ignore[arg-type]

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The state that was saved last; None if there is none.

        Raises:
            VideoError: it is damaged.
            OutputError: it is that of a run that would have had other results.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path) as file:
                arrays = {name: file[name] for name in file.files}
            numbers = json.loads(arrays.pop("_header").tobytes().decode())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise VideoError(
                f"{self.path}: is damaged ({error}): run without --resume to begin again"
            ) from None
        check_same(self.path, numbers.pop("depends", None), self.depends)
        return arrays, numbers

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)
        discard(self.path)
