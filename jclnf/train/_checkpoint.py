"""Files that a training is resumed from: put in place whole, and checked when they are read."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx

from jclnf.errors import TrainingError
from jclnf.outputs import replacing


def save_checkpoint(path: Path, arrays: Any, header: Any) -> None:
    """Write a tree of arrays, after a header of what JSON can hold."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        eqx.tree_serialise_leaves(file, arrays)


def load_checkpoint(path: Path, like: Any) -> tuple[Any, Any]:
    """The arrays of a file, which are as many, as large and of the same types as `like`; and its
    header.

    Raises:
        TrainingError: the file is damaged, or holds other arrays.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
            return eqx.tree_deserialise_leaves(file, like), header
    except Exception as error:  # whatever NumPy meets in a damaged file
        problem = "damaged, or a checkpoint of another training: remove it to begin anew"
        raise TrainingError(f"{path}: {problem}") from error
