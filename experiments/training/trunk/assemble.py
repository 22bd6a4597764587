"""A jclnf model of a trunk, a fine stage and a shape model."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.training.trunk.fine import REGIONS
from experiments.training.trunk.locate import Trained
from experiments.training.trunk.shape import load
from experiments.training.trunk.start import read_start
from jclnf.experts import MapNetwork, PyramidExperts
from jclnf.geometry import PDM, similarity_between
from jclnf.train._faces import MIRROR_68

WINDOWS = (0, 31)
REGULARISATION = (1.0, 0.03)
KERNEL_WIDTH = (8.0, 8.0)
SOFTNESS = 10.0
ITERATIONS = 3
FREEDOM = 0.5
OPENINGS = (37, 38, 40, 41, 43, 44, 46, 47, 48, 54, *range(60, 68))
"""Landmarks of lids, inner lips and corners of the mouth: they go all of the way to where the finer
networks have them, since what a shape model says of an opening is nearer to the mean of all faces,
and of a crooked mouth nearer to a straight one."""


def assembled(
    trunk: Path, fine: Path | None, shape: Path, start: Path | None = None, name: str = "trunk"
) -> jclnf.Model:
    """The model of a trunk's file, a folder of the fine stage's, a shape model's and a start's.

    It looks once: at the whole face and, in the frame of what is found there, at the eyes and the
    mouth. Without a learned start it begins at the frontal mean shape in the box, and a look at
    the whole face alone comes first.
    """
    coarse, pdm = Trained.load(trunk), load(shape).pdm
    regions = {} if fine is None else {r: Trained.load(fine / f"{r.name}.npz") for r in REGIONS}
    model = model_of(coarse, regions, pdm, name)
    if start is None:
        twice = (WINDOWS[1],) * 2
        return dataclasses.replace(model, defaults=model.defaults.replace(windows=twice))
    return dataclasses.replace(model, start=read_start(start))


def model_of(coarse: Trained, regions: dict[Any, Trained], pdm: PDM, name: str) -> jclnf.Model:
    """See `assembled`; `regions` are trained networks by `fine.Region`."""
    n = pdm.n_landmarks
    face = _network(coarse, pdm, tuple(range(n)))
    finer = []
    for region, trained in regions.items():
        others = tuple(int(i) for i in MIRROR_68[list(region.landmarks)])
        mirrored = () if set(others) == set(region.landmarks) else others
        finer.append(_network(trained, pdm, region.landmarks, mirrored))
    middle = (coarse.frame.side - 1) / 2 - coarse.frame.mean.mean(0)
    middle = middle * face.extent / coarse.frame.side
    experts = PyramidExperts(
        face=face,
        regions=tuple(finer),
        softness=jnp.full(2, SOFTNESS),
        centres=jnp.zeros((2, 1, 3)),
        visible=jnp.ones((2, 1, n), bool),
        confidence=jnp.ones((2, 1, n)),
        scalings=(1 / face.cell, 1 / min(network.cell for network in (face, *finer))),
        refined=(False, bool(finer)),
        middle=(float(middle[0]), float(middle[1])),
    )
    defaults = jclnf.FitParams(
        regularisation=jnp.array(REGULARISATION),
        kernel_width=jnp.array(KERNEL_WIDTH),
        weight_factor=jnp.ones(2),
        windows=WINDOWS,
        iterations=ITERATIONS,
        freedom=jnp.full(n, FREEDOM).at[jnp.array(OPENINGS)].set(1.0),
    )
    return jclnf.Model(pdm, experts, defaults, name)


def _network(
    trained: Trained, pdm: PDM, landmarks: tuple[int, ...], mirrored: tuple[int, ...] = ()
) -> MapNetwork:
    front = np.asarray(pdm.mean, float)[:, :2]
    size = float(np.hypot(*similarity_between(trained.frame.mean, front)))
    side = trained.frame.side
    return MapNetwork(dict(trained.weights), landmarks, side, side * size, mirrored)
