"""Agreement with OpenFace C++, stage by stage, on a few of its recorded fits.

Each stage gets what was recorded before it, so that a difference names the stage it comes from.
`experiments/parity` runs the same comparison on all recordings.
"""

import csv
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.recordings import openface_model

import jclnf
from jclnf import geometry
from jclnf.experts._base import landmark_weights
from jclnf.fitting import _meanshift as meanshift
from jclnf.fitting import _rlms as rlms
from jclnf.fitting import prepared
from jclnf.fitting._scales import reference_shape
from jclnf.geometry import Pose, project, update

STAGES = {
    "clnf_general": ("010", "070"),
    "clnf_general_rotated": ("rotation(0,-1.25,0)/000", "rotation(0,0.85,-0.1)/050"),
    "clnf_wild": ("020",),
}


class Recording(NamedTuple):
    model: jclnf.Model
    params: jclnf.FitParams
    data: np.lib.npyio.NpzFile
    folder: Path

    def image(self, key: str) -> np.ndarray:
        path = self.folder / "images" / f"{key.split('/')[-1]}.png"
        return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


@pytest.fixture(scope="module", params=STAGES)
def recording(request, shared):
    folder = shared / "openface"
    wild = request.param.endswith("wild")
    model = openface_model(folder, "wild" if wild else "general")
    settings = jclnf.FitParams.openface_wild if wild else jclnf.FitParams.openface
    data = np.load(folder / "reference" / f"stages_{request.param}.npz")
    return request.param, Recording(model, settings(model).replace(parts=False), data, folder)


def scales(recording):
    """(key, scale, getter) of each recorded scale that the test looks at."""
    name, record = recording
    for key in STAGES[name]:
        for scale in range(len(record.model.scalings)):
            if f"{key}/scale{scale}/responses" in record.data:
                yield (
                    key,
                    scale,
                    lambda field, at=f"{key}/scale{scale}": record.data[f"{at}/{field}"],
                )


def state(values, shape):
    scale, *rest = values.ravel()
    pose = Pose.from_euler(jnp.float32(scale), jnp.array(rest[:3]), jnp.array(rest[3:]))
    return pose, jnp.asarray(shape.ravel())


def pair(matrix):
    return jnp.array([matrix[0, 0], -matrix[0, 1]])


def test_areas_and_responses(recording):
    _, record = recording
    model = prepared(record.model, record.params)
    sample = jax.jit(partial(geometry.sample_areas, fixed_point=True), static_argnums=3)
    # The model is an argument: as a constant it would be folded, for minutes.
    respond = eqx.filter_jit(type(model.experts).responses)

    @jax.jit
    def frames(pose, shape, scale):
        landmarks = project(model.pdm, pose, shape)
        to_reference = geometry.similarity_between(landmarks, reference_shape(model, shape, scale))
        view = model.experts.nearest_view(scale, pose.rotation)
        return landmarks, to_reference, geometry.invert_similarity(to_reference), view

    different = total = 0
    for key, scale, get in scales(recording):
        pose, shape = state(get("params_global_in"), get("params_local_in"))
        view, window = int(get("view").item()), int(get("window_size").item())
        landmarks, to_reference, to_image, nearest = frames(pose, shape, jnp.array(scale))
        assert int(nearest) == view
        np.testing.assert_allclose(to_reference, pair(get("sim_img_to_ref")), atol=1e-5)
        np.testing.assert_allclose(to_image, pair(get("sim_ref_to_img")), atol=1e-5)

        visible = np.asarray(model.experts.visible[scale, view])
        recorded = get("aoi").reshape(68, window + 10, window + 10)
        image = jnp.asarray(record.image(key))
        areas = sample(image, landmarks, to_image, window + 10)
        different += np.count_nonzero(np.abs(areas - recorded)[visible] > 0.01)
        total += recorded[visible].size

        maps = respond(
            model.experts, jnp.asarray(recorded), jnp.array(scale), jnp.array(view), window
        )
        expected = get("responses").reshape(68, window, window)[visible]
        largest = expected.max(axis=(1, 2), keepdims=True)
        assert np.abs((np.asarray(maps)[visible] - expected) / largest).max() < 1e-4
    # Where a fixed-point position falls within rounding of two values, either may be taken.
    assert total > 0
    assert different <= 0.001 * total


def test_each_iteration(recording):
    _, record = recording
    model, params = record.model, record.params

    moved_by = jax.jit(partial(update, model.pdm))

    @jax.jit
    def stages(pose, shape, base, to_reference, to_image, maps, offsets, scale, shifts, weights):
        window = maps.shape[-1]
        own_offsets = geometry.apply_similarity(
            to_reference, project(model.pdm, pose, shape) - base
        )
        width = params.kernel_width[scale]
        own_shifts, _ = meanshift.mean_shift(maps, offsets, width, tabulated=True)
        products = rlms.mode_products(model.pdm, weights)
        flexible = rlms.nonrigid_step(
            model.pdm, pose, shape, shifts, weights, products, params.regularisation[scale]
        )
        rigid = rlms.rigid_step(model.pdm, pose, shape, shifts, weights)
        return (
            own_offsets + (window - 1) / 2,
            own_shifts,
            geometry.apply_similarity(to_image, own_shifts),
            rigid,
            flexible,
        )

    compared = 0
    for key, scale, get in scales(recording):
        pose, shape = state(get("params_global_in"), get("params_local_in"))
        base = project(model.pdm, pose, shape)
        view, window = int(get("view").item()), int(get("window_size").item())
        seen = model.experts.visible[scale, view]
        weights = landmark_weights(
            model.experts.confidence[scale, view], seen, params.weight_factor[scale]
        )
        maps = jnp.asarray(get("responses").reshape(68, window, window))
        frames = pair(get("sim_img_to_ref")), pair(get("sim_ref_to_img"))
        for kind in ("rigid", "nonrigid"):
            for i in range(params.iterations):
                at = f"{key}/scale{scale}/{kind}/iter{i}"
                if f"{at}/offsets" not in record.data:
                    break
                recorded = {
                    field: record.data[f"{at}/{field}"]
                    for field in ("offsets", "mean_shift_ref", "mean_shift_img", "param_update")
                }
                offsets, shifts, in_image, rigid, flexible = stages(
                    pose,
                    shape,
                    base,
                    *frames,
                    maps,
                    jnp.asarray(recorded["offsets"]),
                    jnp.array(scale),
                    jnp.asarray(recorded["mean_shift_img"].T),
                    weights,
                )
                visible = np.asarray(seen)
                within = partial(np.testing.assert_allclose, atol=1e-3, rtol=0)
                within(offsets[visible], recorded["offsets"][visible])
                within(shifts[visible], recorded["mean_shift_ref"].T[visible])
                within(in_image[visible], recorded["mean_shift_img"].T[visible])
                step = rigid if kind == "rigid" else flexible
                within(step, recorded["param_update"].ravel())
                delta = np.zeros(6 + model.pdm.n_modes, np.float32)
                delta[: step.shape[0]] = recorded["param_update"].ravel()
                moved, changed = moved_by(pose, shape, jnp.asarray(delta))
                after = record.data[f"{at}/params_global"], record.data[f"{at}/params_local"]
                within(
                    np.concatenate([[moved.scale], moved.rotation, moved.translation]),
                    after[0].ravel(),
                )
                within(changed, after[1].ravel())
                pose, shape = state(*after)
                compared += 1
    assert compared > 20


@pytest.mark.parametrize(("group", "wild"), [("single", False), ("wild", True)])
def test_final_landmarks(shared, group, wild):
    folder = shared / "openface"
    model = openface_model(folder, "wild" if wild else "general")
    settings = jclnf.FitParams.openface_wild if wild else jclnf.FitParams.openface
    params = settings(model).replace(parts=False)
    recorded = np.load(folder / "reference" / "final_fits.npz")
    worst = []
    for row in list(csv.DictReader((folder / "images" / "boxes.csv").open()))[::15]:
        image = cv2.imread(str(folder / "images" / row["image"]), cv2.IMREAD_GRAYSCALE)
        crop = jclnf.crop(image, [float(row[name]) for name in "xywh"], sizes=(512,))
        # As a JAX array it is not cropped again, to several sizes.
        result = jclnf.fit(model, jnp.asarray(crop.image), crop.box, params).shifted(crop.offset)
        key = f"{group}/{row['image'][:3]}"
        worst.append(
            np.linalg.norm(result.landmarks - recorded[f"{key}/landmarks"].T, axis=1).max()
        )
        likelihood = recorded[f"{key}/likelihood"].item()
        np.testing.assert_allclose(result.likelihood, likelihood, atol=5e-3)
    assert len(worst) == 8
    assert np.median(worst) < (0.02 if wild else 0.005)
    assert np.max(worst) < 0.3
