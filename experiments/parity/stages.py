"""Every stage of the fit on its own, from the state recorded before it to the one after."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import Row, recording
from jclnf import geometry
from jclnf.experts._base import landmark_weights
from jclnf.fitting import _meanshift as meanshift
from jclnf.fitting import _rlms as rlms
from jclnf.fitting._meanshift import model_likelihood
from jclnf.fitting._scales import reference_shape
from jclnf.geometry import Pose, project, update
from tests.support.recordings import Scale, scales

STAGES = 1e-3
RESPONSES = 1e-4
AREAS = 99.9
GREY = 0.01
RECORDINGS = {
    "general": ("stages_clnf_general", "stages_clnf_general_rotated"),
    "wild": ("stages_clnf_wild",),
}
TRACE = "trace_50_iterations"
NO_LIKELIHOOD = -10.0
"""Recorded as the model likelihood of a scale at which OpenFace computes none."""

sample_areas = eqx.filter_jit(geometry.sample_areas)
project_jit = eqx.filter_jit(project)
update_jit = eqx.filter_jit(update)
rigid_step = eqx.filter_jit(rlms.rigid_step)
nonrigid_step = eqx.filter_jit(rlms.nonrigid_step)
mean_shift = eqx.filter_jit(meanshift.mean_shift)


@eqx.filter_jit
def responses(model: jclnf.Model, areas: Any, scale: Any, view: Any, window: int) -> Any:
    return model.experts.responses(areas, scale, view, window)


@eqx.filter_jit
def alignment(model: jclnf.Model, pose: Pose, shape: Any, scale: Any) -> tuple[Any, Any]:
    """The landmarks, and the similarity that takes them to the reference frame."""
    landmarks = project(model.pdm, pose, shape)
    return landmarks, geometry.similarity_between(landmarks, reference_shape(model, shape, scale))


def areas_rows(models: dict[str, jclnf.Model], images: dict[str, np.ndarray]) -> Iterator[Row]:
    """Areas of interest, given the parameters."""
    for kind, names in RECORDINGS.items():
        model = models[kind]
        for name in names:
            equal = total = 0
            largest = 0.0
            for scale in scales(recording(name)):
                k = jnp.array(scale.index)
                landmarks, to_reference = alignment(model, *scale.start, k)
                size = scale.window + model.experts.support - 1
                image = images[scale.face]
                areas = sample_areas(
                    image,
                    landmarks,
                    geometry.invert_similarity(to_reference),
                    size,
                    fixed_point=True,
                )
                seen = np.asarray(model.experts.visible[scale.index, scale.view])
                error = np.abs(np.asarray(areas) - scale.maps("aoi"))[seen]
                equal, total = equal + int(np.sum(error <= GREY)), total + error.size
                largest = max(largest, float(error.max()))
            share = 100 * equal / total
            quantity = f"area pixels equal within {GREY:g} grey"
            yield Row(quantity, name, total, share, at_least=AREAS, unit="%")
            yield Row("largest difference, grey", name, total, largest)


def responses_rows(models: dict[str, jclnf.Model]) -> Iterator[Row]:
    """CCNF responses, given the areas; the model as it was loaded, and prepared."""
    for kind, names in RECORDINGS.items():
        worst: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        model = models[kind]
        forms = {"raw": model, "prepared": model.prepare()}
        for name in names:
            for scale in scales(recording(name)):
                seen = np.asarray(model.experts.visible[scale.index, scale.view])
                wanted = scale.maps("responses")[seen]
                areas = jnp.asarray(scale.maps("aoi"))
                for form, of_model in forms.items():
                    found = np.asarray(responses(of_model, areas, *scale.position))[seen]
                    error = np.abs(found - wanted).max((1, 2)) / wanted.max((1, 2))
                    worst[form, scale.window, scale.view].extend(error)
        for (form, window, view), errors in sorted(worst.items()):
            quantity = f"{kind} model, {form}, window {window}"
            yield Row(quantity, f"view {view}", len(errors), np.max(errors), RESPONSES)


class Errors:
    """Absolute differences by quantity."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = defaultdict(list)

    def add(self, quantity: str, ours: Any, recorded: Any) -> None:
        difference = np.abs(np.asarray(ours).ravel() - np.asarray(recorded).ravel())
        self.found[quantity].append(float(difference.max()))

    def rows(self, where: str) -> Iterator[Row]:
        for quantity, errors in self.found.items():
            yield Row(quantity, where, len(errors), np.max(errors), STAGES)


def chain_rows(models: dict[str, jclnf.Model], images: dict[str, np.ndarray]) -> Iterator[Row]:
    """Areas, responses and mean shifts in a row, from recorded parameters, at recorded offsets.

    Landmarks whose area equals the recorded one are told from those with a pixel that differs.
    """
    for kind, names in {**RECORDINGS, TRACE: (TRACE,)}.items():
        model = models.get(kind, models["general"])
        prepared, params = model.prepare(), settings(kind)(model)
        for name in names:
            found: dict[str, list[float]] = defaultdict(list)
            for scale in scales(recording(name)):
                k = jnp.array(scale.index)
                landmarks, to_reference = alignment(model, *scale.start, k)
                size = scale.window + model.experts.support - 1
                to_image = geometry.invert_similarity(to_reference)
                areas = sample_areas(
                    images[scale.face], landmarks, to_image, size, fixed_point=True
                )
                maps = responses(prepared, areas, *scale.position)
                seen = np.asarray(model.experts.visible[scale.index, scale.view])
                groups = {"areas not recorded": seen}
                if "aoi" in scale:
                    equal = np.abs(np.asarray(areas) - scale.maps("aoi")).max((1, 2)) <= GREY
                    groups = {"equal areas": seen & equal, "unequal areas": seen & ~equal}
                for step in scale.iterations():
                    offsets = jnp.asarray(scale.at(step, "offsets"))
                    width = params.kernel_width[scale.index]
                    shifts = np.asarray(mean_shift(maps, offsets, width, tabulated=True)[0])
                    off = np.abs(shifts - scale.at(step, "mean_shift_ref").T).max(1)
                    for group, members in groups.items():
                        found[group].extend(off[members])
            for group, off in found.items():
                asked = STAGES if group == "equal areas" else None
                yield Row(f"{group}: largest", name, len(off), np.max(off), asked, unit="px")
                share = 100 * np.mean(np.array(off) > STAGES)
                yield Row(f"{group}: beyond {STAGES:g} px", name, len(off), share, unit="%")


def settings(kind: str) -> Callable[[jclnf.Model], jclnf.FitParams]:
    return jclnf.FitParams.openface_wild if kind == "wild" else jclnf.FitParams.openface


def stage_rows(models: dict[str, jclnf.Model]) -> Iterator[Row]:
    """All other stages, for every recorded iteration."""
    for kind, names in {**RECORDINGS, TRACE: (TRACE,)}.items():
        model = models.get(kind, models["general"])
        params = settings(kind)(model)
        for name in names:
            errors, other_views, flips, entries = Errors(), 0, 0, 0
            recorded = list(scales(recording(name)))
            for scale in recorded:
                k = jnp.array(scale.index)
                other_views += int(model.experts.nearest_view(k, scale.start.pose.rotation)) != (
                    scale.view
                )
                found = _iterations(model, params, scale, errors)
                flips, entries = flips + found[0], entries + found[1]
                if "responses" in scale:
                    _likelihoods(model, params, scale, errors)
            yield from errors.rows(name)
            yield Row("views chosen differently", name, len(recorded), other_views, at_most=0)
            yield Row("kernel table entries that flip", name, entries, flips)


def _iterations(
    model: jclnf.Model, params: jclnf.FitParams, scale: Scale, errors: Errors
) -> tuple[int, int]:
    """Compare each iteration of a scale; return how many table entries flip, of how many."""
    pdm, k = model.pdm, scale.index
    visible = np.asarray(model.experts.visible[k, scale.view])
    base, to_reference = alignment(model, *scale.start, jnp.array(k))
    to_image = jnp.asarray(scale.similarity("sim_ref_to_img"))
    errors.add("similarity to reference", to_reference, scale.similarity("sim_img_to_ref"))
    errors.add("similarity to image", geometry.invert_similarity(to_reference), to_image)
    for setting, ours in (
        ("reg_factor", params.regularisation),
        ("sigma", params.kernel_width),
        ("weight_factor", params.weight_factor),
    ):
        errors.add("settings of the scale", ours[k], scale[setting])
    to_reference = jnp.asarray(scale.similarity("sim_img_to_ref"))
    weights = landmark_weights(
        model.experts.confidence[k, scale.view], visible, params.weight_factor[k]
    )
    products = rlms.mode_products(pdm, weights)
    flips = entries = 0
    for step in scale.iterations():
        offsets = jnp.asarray(scale.at(step, "offsets"))
        moved = geometry.apply_similarity(to_reference, project_jit(pdm, *step.before) - base)
        found = moved + (scale.window - 1) / 2
        errors.add("offset in the map, px", found, offsets)
        flips += int(
            np.sum((_entry(found, scale.window) != _entry(offsets, scale.window))[visible])
        )
        entries += 2 * int(visible.sum())
        if "responses" in scale:
            maps = jnp.asarray(scale.maps("responses"))
            shifts, _ = mean_shift(maps, offsets, params.kernel_width[k], tabulated=True)
            shifts = jnp.where(visible[:, None], shifts, 0.0)
            errors.add("mean shift, px", shifts, scale.at(step, "mean_shift_ref").T)
        in_image = jnp.asarray(scale.at(step, "mean_shift_img").T)
        errors.add(
            "mean shift in the image, px",
            geometry.apply_similarity(to_image, scale.at(step, "mean_shift_ref").T),
            in_image,
        )
        wanted = scale.at(step, "param_update").ravel()
        if step.rigid:
            delta = rigid_step(pdm, *step.before, in_image, weights)
        else:
            strength = params.regularisation[k]
            delta = nonrigid_step(pdm, *step.before, in_image, weights, products, strength)
        errors.add(f"{'rigid' if step.rigid else 'non-rigid'} update", delta, wanted)
        whole = np.zeros(6 + pdm.n_modes, np.float32)
        whole[: len(wanted)] = wanted
        pose, shape = update_jit(pdm, *step.before, whole)
        after = scale.at(step, "params_global").ravel()
        errors.add("scale after the update, px/mm", pose.scale, after[0])
        errors.add("Euler angles after the update, rad", pose.rotation, after[1:4])
        errors.add("translation after the update, px", pose.translation, after[4:])
        errors.add("shape parameters after the update", shape, scale.at(step, "params_local"))
    return flips, entries


def _entry(offsets: Any, window: int) -> np.ndarray:
    """The kernel table's entries that offsets are looked up in, in OpenFace's single precision."""
    step = np.float32(meanshift.TABLE_STEP)
    inside = np.clip(np.asarray(offsets), 0, np.float32(window) - step)
    return np.floor(inside / step + np.float32(0.5))


def _likelihoods(model: jclnf.Model, params: jclnf.FitParams, scale: Scale, errors: Errors) -> None:
    """Likelihoods at the last recorded offsets, where OpenFace computes them."""
    recorded = scale["model_likelihood"].item()
    if recorded == NO_LIKELIHOOD:
        return
    *_, last = scale.iterations()
    visible = model.experts.visible[scale.index, scale.view]
    offsets = jnp.asarray(scale.at(last, "offsets"))
    width = params.kernel_width[scale.index]
    _, each = mean_shift(jnp.asarray(scale.maps("responses")), offsets, width)
    errors.add("model likelihood", model_likelihood(each, visible), recorded)
    if recorded == scale.arrays[f"{scale.fit}/likelihood"].item():
        wanted = scale.arrays[f"{scale.fit}/landmark_likelihoods"].ravel()
        errors.add("landmark likelihood", each[visible], wanted[visible])
