"""Recordings of OpenFace's C++ fits, and fits to compare with them."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import jclnf
from jclnf.images import read_image


class RecordedScale(NamedTuple):
    index: int
    view: int
    areas: jnp.ndarray
    responses: np.ndarray

    @property
    def at(self) -> tuple[jnp.ndarray, jnp.ndarray, int]:
        """The arguments of `PatchExperts.responses` after the areas."""
        return jnp.array(self.index), jnp.array(self.view), self.responses.shape[-1]


def recorded_scales(shared: Path, name: str) -> Iterator[RecordedScale]:
    with np.load(shared / "openface" / "reference" / f"{name}.npz") as arrays:
        for key in arrays:
            if key.endswith("/aoi"):
                prefix = key.removesuffix("/aoi")
                areas, responses = arrays[key], arrays[f"{prefix}/responses"]
                yield RecordedScale(
                    int(prefix[-1]),
                    int(arrays[f"{prefix}/view"].item()),
                    jnp.asarray(_square(areas)),
                    _square(responses),
                )


def _square(flat: np.ndarray) -> np.ndarray:
    side = round(flat.shape[1] ** 0.5)
    return flat.reshape(-1, side, side)


def check_fits(
    shared: Path,
    model: jclnf.Model,
    recording: str,
    starts: list[tuple[str, str]],
    *,
    median: float,
    worst: float,
) -> None:
    """Compare the worst landmark of fits with recorded ones: (prefix, name of the image) each."""
    params = model.defaults.replace(arithmetic="openface")
    with open(shared / "openface" / "images" / "boxes.csv", newline="") as file:
        rows = {row["image"].removesuffix(".png"): row for row in csv.DictReader(file)}
    errors = []
    with np.load(shared / "openface" / "reference" / f"{recording}.npz") as arrays:
        for prefix, name in starts:
            face = read_image(shared / "openface" / "images" / f"{name}.png")
            image = np.zeros((512, 512), face.dtype)  # of one size, to be compiled once
            image[: face.shape[0], : face.shape[1]] = face
            box = [float(rows[name][side]) for side in "xywh"]
            found = re.match(r"rotation\((.*)\)/", prefix)
            rotation = [float(angle) for angle in found[1].split(",")] if found else [0.0] * 3
            fit = jclnf.fit(model, image, np.float32(box), params, init=np.float32(rotation))
            distance = np.asarray(fit.landmarks) - arrays[f"{prefix}/landmarks"].T
            errors.append(np.linalg.norm(distance, axis=1).max())
    assert np.median(errors) <= median
    assert max(errors) <= worst
