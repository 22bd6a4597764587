"""Readers of what OpenFace's C++ was recorded to do, in the folder `openface` of the development
data."""

import csv
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from jclnf.geometry import Pose
from jclnf.images import read_image

PASSES = ("rigid", "nonrigid")


@functools.cache
def openface_model(openface: Path, kind: str) -> jclnf.Model:
    """OpenFace's CCNF model `kind`, "general" or "wild", with its parts and its validator. One for
    all tests of a process: what fits prepare of it is kept with it."""
    main = openface / "model" / f"main_clnf_{kind}.txt"
    return jclnf.load_openface(main, parts=True, validator=True)


def csv_rows(path: Path) -> list[dict[str, str]]:
    """A table's rows by the names of its columns."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def box_of(row: Mapping[str, str]) -> np.ndarray:
    return np.array([float(row[side]) for side in "xywh"], np.float32)


class Face(NamedTuple):
    name: str
    image: np.ndarray
    box: np.ndarray


def faces(openface: Path, names: Iterable[str] | None = None, images: str = "images") -> list[Face]:
    """The faces of `images` or `images_large`: all of them, or those of the given names."""
    rows = {
        row["image"].removesuffix(".png"): row for row in csv_rows(openface / images / "boxes.csv")
    }
    return [
        Face(name, read_image(openface / images / f"{name}.png"), box_of(rows[name]))
        for name in (rows if names is None else names)
    ]


LARGE = (640, 640)
"""Height and width that hold all images of large faces."""


def filled(image: np.ndarray, size: tuple[int, int]) -> jax.Array:
    """An image filled up with zeros to a size, so that a fit is compiled once; not cropped, since
    it is a JAX array."""
    canvas = np.zeros(size, np.float32)
    canvas[: image.shape[0], : image.shape[1]] = image
    return jnp.asarray(canvas)


def on_canvas(cases: list[Face], size: tuple[int, int] | None = None) -> list[Face]:
    """The faces in images of one size (height, width; the largest there is), filled up with zeros:
    so a fit is compiled once. A crop would move a face away from the origin, where positions are
    rounded more coarsely than they were in OpenFace."""
    height, width = size or np.max([face.image.shape for face in cases], axis=0)
    filled = []
    for face in cases:
        canvas = np.zeros((height, width), face.image.dtype)
        canvas[: face.image.shape[0], : face.image.shape[1]] = face.image
        filled.append(face._replace(image=canvas))
    return filled


def recording(openface: Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of `reference/<name>.npz`."""
    with np.load(openface / "reference" / f"{name}.npz") as arrays:
        return dict(arrays)


def landmarks_of(recorded: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    """Recorded final landmarks, (n, 2)."""
    return recorded[f"{prefix}/landmarks"].T


def rotation_of(prefix: str) -> np.ndarray:
    """The rotation that a recorded fit started from: `rotation(rx,ry,rz)/NNN`, or frontal."""
    found = re.match(r"rotation\((.*)\)/", prefix)
    return np.array(found[1].split(",") if found else [0, 0, 0], np.float32)


class State(NamedTuple):
    """Recorded parameters."""

    pose: Pose
    shape: np.ndarray


def state(params_global: np.ndarray, params_local: np.ndarray) -> State:
    g = jnp.asarray(params_global.ravel())
    return State(Pose.from_euler(g[0], g[1:4], g[4:6]), params_local.ravel())


class Iteration(NamedTuple):
    """One recorded iteration, and the parameters before it."""

    rigid: bool
    number: int
    before: State
    prefix: str


class Scale:
    """One scale of a recorded fit; `scale["sigma"]` are the arrays recorded for it."""

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str, index: int) -> None:
        self.arrays, self.fit, self.index = arrays, prefix, index
        self.prefix = f"{prefix}/scale{index}"
        self.face = prefix.split("/")[-1]
        self.view = int(self["view"].item())
        self.window = int(self["window_size"].item())
        self.start = state(self["params_global_in"], self["params_local_in"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[f"{self.prefix}/{name}"]

    def __contains__(self, name: str) -> bool:
        return f"{self.prefix}/{name}" in self.arrays

    def maps(self, name: str) -> np.ndarray:
        """`aoi` or `responses` as (n, side, side)."""
        flat = self[name]
        side = round(flat.shape[1] ** 0.5)
        return flat.reshape(-1, side, side)

    @property
    def position(self) -> tuple[jax.Array, jax.Array, int]:
        """The arguments of `PatchExperts.responses` after the areas."""
        return jnp.array(self.index), jnp.array(self.view), self.window

    def similarity(self, name: str) -> np.ndarray:
        """A recorded 2x2 similarity as the pair (a, b) of `[[a, -b], [b, a]]`."""
        matrix = self[name]
        return np.array([matrix[0, 0], -matrix[0, 1]])

    def at(self, step: Iteration, name: str) -> np.ndarray:
        """An array recorded for an iteration."""
        return self[f"{step.prefix}/{name}"]

    def after(self, step: Iteration) -> State:
        return state(self.at(step, "params_global"), self.at(step, "params_local"))

    def iterations(self) -> Iterator[Iteration]:
        before = self.start
        for name in PASSES:
            number = 0
            while f"{name}/iter{number}/param_update" in self:
                step = Iteration(name == "rigid", number, before, f"{name}/iter{number}")
                yield step
                before = self.after(step)
                number += 1


def scales(arrays: Mapping[str, np.ndarray]) -> Iterator[Scale]:
    """All scales of all fits of a file of recordings."""
    found = {re.match(r"(.*)/scale(\d+)/", key) for key in arrays if "/scale" in key}
    for prefix, index in sorted({(match[1], int(match[2])) for match in found}):
        yield Scale(arrays, prefix, index)


def check_fits(
    openface: Path,
    model: jclnf.Model,
    name: str,
    starts: list[tuple[str, str]],
    *,
    median: float,
    worst: float,
) -> None:
    """Compare the worst landmark of fits with recorded ones: (prefix, name of the image) each."""
    params = model.defaults.replace(arithmetic="openface")
    recorded, errors = recording(openface, name), []
    for prefix, face in starts:
        (case,) = faces(openface, [face])
        image = filled(case.image, (512, 512))
        fit = jclnf.fit(model, image, case.box, params, init=rotation_of(prefix))
        distance = np.asarray(fit.landmarks) - landmarks_of(recorded, prefix)
        errors.append(np.linalg.norm(distance, axis=1).max())
    assert np.median(errors) <= median
    assert max(errors) <= worst
