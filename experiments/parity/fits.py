"""Whole fits against the recorded ones, and against each other."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import Row, faces, recording
from jclnf import Arithmetic, FitParams, FitResult, Model
from jclnf.openface import FRONTAL, ROTATIONS
from tests.support.recordings import Face, landmarks_of, rotation_of

SIDE = 512
"""Side of the crops: one for all faces, so that a fit is compiled once."""
FAR = 0.3
"""From this distance (px) of its worst landmark on a face is listed."""
NEIGHBOURS, NUDGE = 64, 2e-5
SAME = 1e-3
EAGER_FACES = 2
VMAPPED = 32
WHOLE = {"exact arithmetic": "exact", "openface arithmetic": "openface"}
PARTS = {
    "fixed point only": Arithmetic(fixed_point_sampling=True),
    "table only": Arithmetic(tabulated_kernel=True),
    "early stop only": Arithmetic(early_stop=True),
}
"""OpenFace's short cuts one by one: which of them make last bits matter."""

Fit = Callable[[jclnf.images.Crop], FitResult]


class Fits(NamedTuple):
    """The fits of many faces, in NumPy arrays."""

    landmarks: np.ndarray
    likelihood: np.ndarray
    landmark_likelihood: np.ndarray
    visible: np.ndarray


def fit_all(cases: list[Face], fit: Fit) -> Fits:
    results = []
    for face in cases:
        crop = jclnf.crop(face.image, face.box, sizes=(SIDE,))
        found = jax.device_get(fit(crop).shifted(crop.offset))
        results.append([getattr(found, name) for name in Fits._fields])
    return Fits(*(np.stack(column) for column in zip(*results, strict=True)))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each landmark of each face, (b, n)."""
    return np.linalg.norm(a - b, axis=-1)


def against_recorded(
    name: str,
    prefixes: list[str],
    recorded: dict[str, np.ndarray],
    found: Fits,
    asked: tuple[float | None, float | None],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows about whole fits, and the faces that are far from the recorded ones."""
    error = distances(found.landmarks, np.stack([landmarks_of(recorded, p) for p in prefixes]))
    worst = error.max(1)
    of_model = np.array([recorded[f"{p}/likelihood"].item() for p in prefixes])
    each = np.stack([recorded[f"{p}/landmark_likelihoods"].ravel() for p in prefixes])
    off_model = np.abs(found.likelihood - of_model)
    off_each = np.where(found.visible, np.abs(found.landmark_likelihood - each), 0.0).max(1)
    at = name, len(prefixes)
    median, tail = asked
    rows = [
        Row("worst landmark of a face, median", *at, np.median(worst), median, unit="px"),
        Row("worst landmark, 95th percentile", *at, np.quantile(worst, 0.95), tail, unit="px"),
        Row("worst landmark, largest", *at, worst.max(), unit="px"),
        Row("mean landmark distance, mean", *at, error.mean(), unit="px"),
        Row(f"faces beyond {FAR} px", *at, int(np.sum(worst > FAR))),
        Row("model likelihood off, median", *at, np.median(off_model)),
        Row("model likelihood off, largest", *at, off_model.max()),
        Row("worst landmark likelihood off, median", *at, np.median(off_each)),
        Row("worst landmark likelihood off, largest", *at, off_each.max()),
    ]
    far = [
        {
            "fit": prefixes[i],
            "worst landmark, px": worst[i],
            "mean, px": error[i].mean(),
            "likelihood recorded": of_model[i],
            "likelihood found": found.likelihood[i],
        }
        for i in np.flatnonzero(worst > FAR)
    ]
    return rows, far


def single_rows(models: dict[str, Model]) -> tuple[list[Row], list[dict[str, Any]]]:
    """One start, both models, and what exact arithmetic changes."""
    recorded, cases = recording("final_fits"), faces()
    rows, far = [], []
    for group, kind, settings, asked in (
        ("single", "general", FitParams.openface, (0.005, 0.05)),
        ("wild", "wild", FitParams.openface_wild, (0.02, 0.1)),
    ):
        params = settings(models[kind])
        found = fit_all(cases, fitter(jclnf.fit, models[kind], params))
        prefixes = [f"{group}/{face.name}" for face in cases]
        more = against_recorded(group, prefixes, recorded, found, asked)
        by_name = {f"{group}/{face.name}": face for face in cases}
        for entry in more[1]:
            target = landmarks_of(recorded, entry["fit"])
            entry |= neighbours(by_name[entry["fit"]], models[kind], params, target)
        rows, far = rows + more[0], far + more[1]
        exact = fit_all(cases, fitter(jclnf.fit, models[kind], params.replace(arithmetic="exact")))
        rows += exact_rows(group, exact, found)
    return rows, far


def neighbours(face: Face, model: Model, params: FitParams, target: np.ndarray) -> dict[str, float]:
    """Where a fit ends that starts from boxes moved by no more than rounding does.

    If some come close to the recorded landmarks and others do not, it is rounding that decides.
    """
    crop = jclnf.crop(face.image, face.box, sizes=(SIDE,))
    moves = np.random.default_rng(0).uniform(-NUDGE, NUDGE, (NEIGHBOURS, 4))
    image, boxes = jnp.asarray(crop.image), jnp.asarray(crop.box + moves, jnp.float32)
    fit_one = jax.jit(lambda box: jclnf.fit(model, image, box, params).landmarks)
    ends = np.stack([fit_one(box) for box in boxes]) + crop.offset
    worst = distances(ends, target).max(1)
    name = f"{NEIGHBOURS} starts moved by {NUDGE} px"
    return {
        f"{name}: smallest": worst.min(),
        "median": np.median(worst),
        "largest": worst.max(),
    }


def rotated_rows(model: Model) -> tuple[list[Row], list[dict[str, Any]]]:
    """Fits from other start rotations."""
    recorded = recording("stages_clnf_general_rotated")
    prefixes = sorted({key.removesuffix("/success") for key in recorded if "success" in key})
    params = FitParams.openface(model)
    found = []
    for prefix in prefixes:
        fit = fitter(jclnf.fit, model, params, init=rotation_of(prefix))
        found.append(fit_all(faces([prefix.split("/")[1]]), fit))
    fits = Fits(*(np.concatenate(column) for column in zip(*found, strict=True)))
    return against_recorded("rotated starts", prefixes, recorded, fits, (None, None))


def multi_rows(model: Model) -> tuple[list[Row], list[dict[str, Any]]]:
    """Eleven start rotations, of which the likeliest fit is kept."""
    recorded, cases = recording("final_fits"), faces()
    params = FitParams.openface(model).replace(rotations=ROTATIONS)
    found = fit_all(cases, fitter(jclnf.fit, model, params))
    prefixes = [f"multi/{face.name}" for face in cases]
    error = distances(found.landmarks, np.stack([landmarks_of(recorded, p) for p in prefixes]))
    near = error.max(1) <= FAR
    share = Row(
        f"faces with every landmark within {FAR} px",
        "multi",
        len(cases),
        100 * near.mean(),
        at_least=98,
        unit="%",
    )
    chosen = [prefix for prefix, is_near in zip(prefixes, near, strict=True) if is_near]
    of_near = Fits(*(column[near] for column in found))
    rows, _ = against_recorded("multi", chosen, recorded, of_near, (0.005, 0.05))
    _, far = against_recorded("multi", prefixes, recorded, found, (None, None))
    exact = fit_all(cases, fitter(jclnf.fit, model, params.replace(arithmetic="exact")))
    return [share, *rows, *exact_rows("multi", exact, found)], far


def exact_rows(group: str, exact: Fits, openface: Fits) -> list[Row]:
    error = distances(exact.landmarks, openface.landmarks)
    each, at = error.mean(1), (group, len(error))
    name = "exact against openface arithmetic, mean distance of a face"
    return [
        Row(f"{name}, mean", *at, each.mean(), unit="px"),
        Row(f"{name}, 95th percentile", *at, np.quantile(each, 0.95), unit="px"),
        Row(f"{name}, largest", *at, each.max(), unit="px"),
    ]


def transformed_rows(model: Model) -> Iterator[Row]:
    """The same fits vmapped, and without compilation."""
    cases = faces()[:VMAPPED]
    crops = [jclnf.crop(face.image, face.box, sizes=(SIDE,)) for face in cases]
    images = jnp.stack([crop.image for crop in crops])
    boxes = jnp.stack([crop.box for crop in crops])
    frontal = model.defaults.replace(rotations=FRONTAL)
    for arithmetic, which in (*WHOLE.items(), *PARTS.items()):
        params = frontal.replace(arithmetic=which)
        single = [jclnf.fit(model, p.image, p.box, params).landmarks for p in crops]
        at_once = jax.vmap(lambda image, box, p=params: jclnf.fit(model, image, box, p))
        error = distances(np.asarray(at_once(images, boxes).landmarks), np.stack(single))
        name = f"vmap against single fits, {VMAPPED} faces"
        yield from same_rows(name, arithmetic, error)
    for arithmetic, which in WHOLE.items():
        params = frontal.replace(arithmetic=which)
        some = crops[:EAGER_FACES]
        compiled = [jclnf.fit(model, p.image, p.box, params).landmarks for p in some]
        with jax.disable_jit():
            eager = [jclnf.fit(model, jnp.asarray(p.image), p.box, params).landmarks for p in some]
        error = distances(np.stack(eager), np.stack(compiled))
        name = f"jit against eager, {EAGER_FACES} faces"
        yield from same_rows(name, arithmetic, error)


def same_rows(name: str, arithmetic: str, error: np.ndarray) -> Iterator[Row]:
    """Rows about two computations of the same fits."""
    at, worst = (arithmetic, len(error)), error.max(1)
    yield Row(f"{name}: worst landmark, median", *at, np.median(worst), unit="px")
    asked = SAME if arithmetic in WHOLE else None
    yield Row(f"{name}: worst landmark, largest", *at, worst.max(), asked, unit="px")


def fitter(function: Callable[..., FitResult], model: Model, params: FitParams, **more: Any) -> Fit:
    return lambda crop: function(model, crop.image, crop.box, params, **more)
