"""Measure how close SVR and CEN experts come to OpenFace's C++: response maps and whole fits.

The CEN files have random weights, since OpenFace's own are not to be had with the development
data: they fit no face, but their numbers are as good as any to compare arithmetic with.
"""

import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import (
    OPENFACE,
    Row,
    command_line,
    faces,
    missed,
    recording,
    table,
    write_results,
)
from jclnf import geometry
from jclnf.fitting._scales import reference_shape
from jclnf.geometry import project
from jclnf.params import OPENFACE as ARITHMETIC
from tests.support.recordings import Scale, landmarks_of, on_canvas, rotation_of, scales

HERE = Path(__file__).resolve().parent

SVR_RESPONSES, CEN_RESPONSES = 1e-4, 5e-5
MEDIAN, PERCENTILE = 0.02, 0.1
RECORDINGS = {
    "SVR": ("stages_clm_svr", "stages_clm_svr_rotated"),
    "CEN": ("stages_ceclm_synthetic", "stages_ceclm_synthetic_rotated"),
}
FITS = {
    "SVR": [[("final_fits", "svr/")], [("stages_clm_svr_rotated", "")]],
    "CEN": [[(name, "") for name in RECORDINGS["CEN"]]],
}


def load_models() -> dict[str, jclnf.Model]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(OPENFACE / "model", model, copy_function=shutil.copyfile)
        for file in (OPENFACE / "synthetic_cen").iterdir():
            shutil.copyfile(file, model / "patch_experts" / file.name)
        return {
            "SVR": jclnf.load_openface(model / "main_clm_general.txt"),
            "CEN": jclnf.load_openface(model / "main_ceclm_general.txt"),
        }


@eqx.filter_jit
def responses(model: jclnf.Model, areas: Any, scale: Any, view: Any, window: int) -> Any:
    return model.experts.responses(areas, scale, view, window, arithmetic=ARITHMETIC)


@eqx.filter_jit
def own_areas(model: jclnf.Model, image: Any, pose: Any, shape: Any, scale: Any, side: int) -> Any:
    landmarks = project(model.pdm, pose, shape)
    to_image = geometry.invert_similarity(
        geometry.similarity_between(landmarks, reference_shape(model, shape, scale))
    )
    return geometry.sample_areas(image, landmarks, to_image, side, fixed_point=True)


def errors(kind: str, model: jclnf.Model, scale: Scale, areas: np.ndarray) -> np.ndarray:
    """Largest difference of each landmark's map; of an SVR map, which is small, by its maximum."""
    found = np.asarray(responses(model, jnp.asarray(areas), *scale.position))
    wanted = scale.maps("responses")
    size = wanted.max((1, 2)) if kind == "SVR" else 1.0
    return np.abs(found - wanted).max((1, 2)) / np.maximum(size, np.finfo(np.float32).tiny)


def response_rows(kind: str, model: jclnf.Model, images: dict[str, np.ndarray]) -> Iterator[Row]:
    worst: dict[int, list[float]] = defaultdict(list)
    unrecorded: list[float] = []
    for name in RECORDINGS[kind]:
        for scale in scales(recording(name)):
            seen = np.asarray(model.experts.visible[scale.index, scale.view])
            areas = scale.maps("aoi")
            has_area = np.abs(areas).max((1, 2)) > 0
            worst[scale.view].extend(errors(kind, model, scale, areas)[seen & has_area])
            if (seen & ~has_area).any():
                where = jnp.array(scale.index), scale.window + model.experts.support - 1
                own = np.asarray(own_areas(model, images[scale.face], *scale.start, *where))
                unrecorded.extend(errors(kind, model, scale, own)[seen & ~has_area])
    asked, by = (SVR_RESPONSES, "by map maximum, ") if kind == "SVR" else (CEN_RESPONSES, "")
    for view, found in sorted(worst.items()):
        yield Row(
            f"response error {by}largest", f"{kind}, view {view}", len(found), max(found), asked
        )
    if unrecorded:
        at = f"{kind}, view 0, mirrored maps, areas by jclnf (none recorded)", len(unrecorded)
        yield Row("response error, median", *at, np.median(unrecorded), asked)
        share = 100 * np.mean(np.array(unrecorded) <= asked)
        yield Row(f"maps within {asked:g}", *at, share, unit="%")
        yield Row("response error, largest", *at, max(unrecorded))


def fit_rows(kind: str, model: jclnf.Model, groups: list[tuple[str, str]]) -> Iterator[Row]:
    """Whole fits against those of some recordings, of each the fits of a prefix."""
    params = model.defaults.replace(arithmetic="openface")
    of_face = {face.name: face for face in on_canvas(faces())}
    worst, likelihood = [], []
    for name, group in groups:
        recorded = recording(name)
        for prefix in sorted(key.removesuffix("/success") for key in recorded):
            if f"{prefix}/success" not in recorded or not prefix.startswith(group):
                continue
            face = of_face[prefix.split("/")[-1]]
            start = rotation_of(prefix)
            fitted = jclnf.fit(model, face.image, face.box, params, init=start)
            found = jax.device_get(fitted)
            distance = np.linalg.norm(found.landmarks - landmarks_of(recorded, prefix), axis=1)
            worst.append(distance.max())
            likelihood.append(abs(found.likelihood - recorded[f"{prefix}/likelihood"].item()))
    at = f"{kind}, {' and '.join(name for name, _ in groups)}", len(worst)
    yield Row("worst landmark, median", *at, np.median(worst), MEDIAN, unit="px")
    percentile = np.quantile(worst, 0.95)
    yield Row("worst landmark, 95th percentile", *at, percentile, PERCENTILE, unit="px")
    yield Row("worst landmark, largest", *at, max(worst), unit="px")
    yield Row("model likelihood difference, largest", *at, max(likelihood))


def main() -> None:
    command_line(__doc__).parse_args()
    images = {face.name: face.image for face in faces()}
    models = load_models()
    rows: list[Row] = []
    for kind, model in models.items():
        rows += response_rows(kind, model, images)
        for groups in FITS[kind]:
            rows += fit_rows(kind, model, groups)
    lines = [[row.quantity, row.where, row.count, row.found, row.asked] for row in rows]
    body = table(["quantity", "over", "number", "measured", "asked"], lines)
    write_results(HERE, "SVR and CEN experts against OpenFace", body, {"rows": rows})
    sentence, wrong = missed(rows)
    sys.exit(sentence if wrong else None)


if __name__ == "__main__":
    main()
