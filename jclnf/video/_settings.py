"""What a run over a video is told to do."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK = 32
"""Frames between which rows reach the file; a run goes on from the beginning of a chunk."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; plain values only, as they go to other processes and into files."""

    model: str | None = None
    """As `jclnf.load_model` takes it."""
    parts: bool = True
    """Load the part models of an OpenFace model, if it has any."""
    validator: bool = True
    """Load the validator of an OpenFace model, if it has one."""
    arithmetic: str | None = None
    iterations: int | None = None
    detector: str = "haar"
    """As `jclnf.detect.make_detector` takes it."""
    boxes: str | None = None
    """A `jclnf.outputs.FrameBoxTable` in place of the detector."""
    one: bool = False
    """One face, as OpenFace's program for single faces has it."""
    faces: int | None = None
    """Most faces followed at a time."""
    independent: bool = False
    """Fit each frame from detected boxes instead of from the frame before."""
    begin: float = 0.0
    """Seconds of the video that are left out."""
    end: float | None = None
    """Seconds of the video after which nothing is used."""
    rate: float | None = None
    """Frames per second of a folder of pictures."""
    focal: tuple[float, float] | None = None
    centre: tuple[float, float] | None = None
    """The camera, in pixels; assumed if not given, see `jclnf.space.Camera.assumed`."""
    full_precision: bool = False
    pts: bool = False
    aligned: int = 0
    """Side in pixels of aligned pictures of the faces; 0 for none."""
    overlay: bool = False
    parquet: bool = False
    smooth: str | None = None
    plot: bool = True

    def digest(self, *others: Any) -> str:
        """A number for these settings (and whatever else a result depends on)."""
        text = json.dumps([dataclasses.asdict(self), *others], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_digest(path: Path) -> list[Any]:
    """What tells a file from another of the same name, without reading all of it."""
    if path.is_dir():
        return sorted([file.name, file.stat().st_size] for file in path.iterdir())
    with path.open("rb") as file:
        beginning = hashlib.sha256(file.read(2**20)).hexdigest()
    return [path.stat().st_size, beginning]


def model_digest(model: Any) -> str:
    """A number for everything that a model consists of."""
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(model)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
