"""The fit of one face: over scales, a rigid and a non-rigid pass of regularised mean shifts.

Sources: Saragih, Lucey, Cohn (IJCV 2011); Baltrusaitis, Robinson, Morency (ICCVW 2013) and, for
the schedule over scales, "OpenFace: an open source facial behavior analysis toolkit" (WACV 2016).
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.experts import Responses
from jclnf.fitting import _implicit as implicit
from jclnf.fitting import _meanshift as meanshift
from jclnf.fitting import _rlms as rlms
from jclnf.fitting import _uncertainty as uncertainty
from jclnf.fitting._model import Model
from jclnf.fitting._result import FitResult, FitStatus, Trace
from jclnf.geometry import (
    PDM,
    Pose,
    apply_similarity,
    clamp,
    invert_similarity,
    moved,
    norm,
    project,
    sample_areas,
    shape3d,
    similarity_between,
    turned3d,
    update,
)
from jclnf.params import EXACT, FitParams, as_dtype

LARGEST_ZOOM = 3.0
"""A fit that changes the start's scale by more than this factor has diverged."""


def fit_from(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    pose: Pose,
    shape: Float[Array, " m"],
    params: FitParams,
) -> FitResult:
    """Fit one face from a given pose and shape.

    The fit proper, without its start and without `postprocess`. A pure function that is neither
    compiled nor checks its inputs.
    """
    params, pose, shape = as_dtype((params, pose, shape), model.pdm.mean.dtype)
    image = jnp.asarray(image)
    start = _State(
        pose=pose,
        shape=shape,
        likelihood=jnp.zeros_like(pose.scale),
        landmark_likelihood=jnp.zeros_like(model.pdm.mean[:, 0]),
        visible=jnp.ones(model.pdm.n_landmarks, bool),
        settled=jnp.array(False),
        too_small=jnp.array(False),
        measured=_nothing_measured(model.pdm) if params.uncertainty else None,
    )
    if params.derivatives == "implicit":
        state, trace, maps = _with_implicit_derivatives(model, image, params, start)
    else:
        state, trace, maps = _fit_scales(model, image, params, start, _used(params))
    landmarks = project(model.pdm, state.pose, state.shape)
    return FitResult(
        landmarks=_freed(maps, params, state, landmarks),
        landmarks3d=turned3d(model.pdm, state.pose, state.shape),
        pose=state.pose,
        shape=state.shape,
        likelihood=state.likelihood,
        landmark_likelihood=state.landmark_likelihood,
        visible=state.visible,
        status=_status(
            project(model.pdm, start.pose, start.shape),
            landmarks,
            sample_areas(image, landmarks, jnp.array([1.0, 0.0], landmarks.dtype), 1),
            start,
            state,
        ),
        trace=Trace(**trace),
        covariance=_covariance(model, state),
    )


class _State(NamedTuple):
    """The carry from scale to scale."""

    pose: Pose
    shape: Float[Array, " m"]
    likelihood: Float[Array, ""]
    landmark_likelihood: Float[Array, " n"]
    visible: Bool[Array, " n"]
    settled: Bool[Array, ""]
    too_small: Bool[Array, ""]
    measured: "_Measured | None"


class _Measured(NamedTuple):
    """The last responses and their frame, for the covariance of landmarks."""

    responses: Float[Array, "n 2 2"]
    to_image: Float[Array, "2"]


class _Maps(NamedTuple):
    """The responses that the two passes of a scale work on, and the frame they stand in."""

    responses: Responses
    base: Float[Array, "n 2"]
    to_reference: Float[Array, "2"]
    to_image: Float[Array, "2"]
    visible: Bool[Array, " n"]
    weights: Float[Array, " n"]
    peaks: Float[Array, "n 2"]


class _Pass(NamedTuple):
    """The carry from iteration to iteration."""

    pose: Pose
    shape: Float[Array, " m"]
    before: Float[Array, "n 2"]
    """Landmarks that the last iteration began with."""
    likelihoods: Float[Array, " n"]
    """Of those."""


class _Record(NamedTuple):
    """What is kept of an iteration; all of a pass have a leading axis."""

    performed: Bool[Array, "*t"]
    positions: Float[Array, "*t n 2"]
    shifts: Float[Array, "*t n 2"]
    likelihoods: Float[Array, "*t n"]
    updates: Float[Array, "*t _"]


def _nothing_measured(pdm: PDM) -> _Measured:
    n, dtype = pdm.n_landmarks, pdm.mean.dtype
    return _Measured(jnp.zeros((n, 2, 2), dtype), jnp.array([1.0, 0.0], dtype))


def _covariance(model: Model, state: _State) -> Float[Array, "n 2 2"] | None:
    if state.measured is None:
        return None
    calibration = uncertainty.uncalibrated() if model.uncertainty is None else model.uncertainty
    calibration = as_dtype(calibration, model.pdm.mean.dtype)
    responses, to_image = state.measured
    at = (model.pdm, state.pose, state.shape)
    return uncertainty.landmark_covariance(*at, responses, state.visible, to_image, calibration)


def _used(params: FitParams) -> list[int]:
    """The scales that are fitted."""
    return [scale for scale, window in enumerate(params.windows) if window]


def _known(scale: int) -> Int[Array, ""]:
    """The number as an array that is no tracer, so that experts need no branch for other scales."""
    with jax.ensure_compile_time_eval():
        return jnp.array(scale)


def _fit_scales(
    model: Model,
    image: Real[Array, "h w"],
    params: FitParams,
    state: _State,
    scales: list[int],
) -> tuple[_State, dict[str, Array], _Maps]:
    """The given scales, one after the other; and the maps of the last."""
    traces = []
    for window, group in itertools.groupby(scales, key=params.windows.__getitem__):

        def one_scale(
            state: _State, scale: Int[Array, ""], window: int = window
        ) -> tuple[_State, tuple[dict[str, Array], _Maps]]:
            return _fit_scale(model, image, params, state, scale, window)

        first, *others = group
        # Without a loop: XLA's convolutions are ten times slower in one, backwards.
        steps: Callable[..., Any] = one_scale if others else partial(one_scale, scale=_known(first))
        if params.derivatives == "rematerialised":
            steps = jax.checkpoint(steps)
        if others:
            state, (trace, maps) = lax.scan(steps, state, jnp.array([first, *others]))
            maps = jax.tree.map(lambda array: array[-1], maps)
        else:
            state, (trace, maps) = steps(state)
            trace = jax.tree.map(lambda array: array[None], trace)
        traces.append(trace)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces), maps


def _with_implicit_derivatives(
    model: Model, image: Real[Array, "h w"], params: FitParams, start: _State
) -> tuple[_State, dict[str, Array], _Maps]:
    """All scales without derivatives, and then those of the point where the last one ended."""
    *earlier, last = _used(params)
    held, pixels, settings, before = lax.stop_gradient((model, image, params, start))
    traces = []
    if earlier:
        before, trace, _ = _fit_scales(held, pixels, settings, before, earlier)
        traces.append(trace)
    after, trace, _ = _fit_scales(held, pixels, settings, before, [last])
    traces.append(trace)
    scale, window = _known(last), params.windows[last]
    view = held.experts.nearest_view(scale, before.pose.rotation)
    # The windows stay where they are: only what the experts say in them changes.
    standing = dataclasses.replace(model, pdm=held.pdm)
    maps = response_maps(standing, image, params, before.pose, before.shape, scale, view, window)
    products = rlms.mode_products(model.pdm, maps.weights)
    strength = params.regularisation[scale]
    # A kernel that is read from a table has no slope.
    params = params.replace(arithmetic=EXACT)

    def residual(pdm: PDM, pose: Pose, shape: Float[Array, " m"]) -> Float[Array, " 6+m"]:
        shifts, _ = _mean_shifts(maps, params, scale, project(pdm, pose, shape))
        in_image = apply_similarity(maps.to_image, shifts)
        weights = maps.weights
        return rlms.normal_equations(pdm, pose, shape, in_image, weights, products, strength)[1]

    pose, shape = implicit.fixed_point(model.pdm, residual, after.pose, after.shape)
    _, each = _mean_shifts(maps, params, scale, project(model.pdm, pose, shape))
    likelihood = meanshift.model_likelihood(each, maps.visible)
    here = after._replace(
        pose=pose,
        shape=shape,
        likelihood=implicit.with_derivative(after.likelihood, likelihood),
        landmark_likelihood=implicit.with_derivative(after.landmark_likelihood, each),
    )
    trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)
    return _select(after.too_small, after, here), trace, maps


def _fit_scale(
    model: Model,
    image: Real[Array, "h w"],
    params: FitParams,
    state: _State,
    scale: Int[Array, ""],
    window: int,
) -> tuple[_State, tuple[dict[str, Array], _Maps]]:
    """Responses at one scale, then the rigid and the non-rigid pass over them."""
    view = model.experts.nearest_view(scale, state.pose.rotation)
    maps = response_maps(model, image, params, state.pose, state.shape, scale, view, window)
    shape = clamp(model.pdm, state.shape)
    carry = _Pass(state.pose, shape, maps.base, state.landmark_likelihood)
    carry, _, rigid = _iterate(model.pdm, maps, params, carry, scale, rigid=True)
    carry, landmarks, nonrigid = _iterate(model.pdm, maps, params, carry, scale, rigid=False)
    after = _State(
        pose=carry.pose,
        shape=carry.shape,
        likelihood=meanshift.model_likelihood(carry.likelihoods, maps.visible),
        landmark_likelihood=carry.likelihoods,
        visible=maps.visible,
        settled=norm(landmarks - carry.before, 2) < params.tolerance,
        too_small=carry.pose.scale < model.experts.smallest_scale,
        measured=_Measured(uncertainty.response_covariance(maps.responses), maps.to_image)
        if params.uncertainty
        else None,
    )
    from_centre = maps.peaks - meanshift.centre(maps.responses)
    both = jax.tree.map(lambda *passes: jnp.stack(passes), rigid, nonrigid)
    trace = both._asdict() | {
        "view": view,
        "visible": maps.visible,
        "peak_from_centre": jnp.where(maps.visible[:, None], from_centre, 0.0),
        "pixel": norm(maps.to_image, 1),
    }
    # A face that became too small at an earlier scale stays as it was then.
    kept = _select(state.too_small, state, after)
    return kept, (_select(state.too_small, jax.tree.map(jnp.zeros_like, trace), trace), maps)


def response_maps(
    model: Model,
    image: Real[Array, "h w"],
    params: FitParams,
    pose: Pose,
    shape: Float[Array, " m"],
    scale: Int[Array, ""],
    view: Int[Array, ""],
    window: int,
) -> _Maps:
    """The response maps of one scale around the current shape, and the frame they stand in."""
    base = project(model.pdm, pose, shape)
    to_reference = similarity_between(base, reference_shape(model, shape, scale))
    to_image = invert_similarity(to_reference)
    responses = model.experts.respond(
        image,
        base,
        to_image,
        scale,
        view,
        window,
        arithmetic=params.arithmetic,
    )
    visible = model.experts.visible[scale, view]
    return _Maps(
        responses,
        base,
        to_reference,
        to_image,
        visible,
        model.experts.shift_weights(responses, scale, view, params.weight_factor[scale]),
        meanshift.peak(responses),
    )


def reference_shape(
    model: Model, shape: Float[Array, " m"], scale: Int[Array, ""]
) -> Float[Array, "n 2"]:
    """The shape seen from the front at the scale's size: the frame that experts work in."""
    scaling = jnp.asarray(model.experts.scalings, shape.dtype)[scale]
    return scaling * shape3d(model.pdm, shape)[:, :2]


def _iterate(
    pdm: PDM,
    maps: _Maps,
    params: FitParams,
    carry: _Pass,
    scale: Int[Array, ""],
    *,
    rigid: bool,
) -> tuple[_Pass, Float[Array, "n 2"], _Record]:
    """One pass: `params.iterations` steps over the same maps, or fewer if they may stop early; with
    the landmarks that it ended at, which are the last of its positions."""
    products = None if rigid else rlms.mode_products(pdm, maps.weights)

    def iteration(carry: _Pass, index: Int[Array, ""]) -> tuple[_Pass, _Record]:
        pose, shape = carry.pose, carry.shape
        landmarks = project(pdm, pose, shape)
        shifts, likelihoods = _mean_shifts(maps, params, scale, landmarks)
        in_image = apply_similarity(maps.to_image, shifts)
        if products is None:
            delta = rlms.rigid_step(pdm, pose, shape, in_image, maps.weights)
            pose, delta = moved(pose, delta), jnp.concatenate([delta, jnp.zeros_like(shape)])
        else:
            strength = params.regularisation[scale]
            weights = maps.weights
            delta = rlms.nonrigid_step(pdm, pose, shape, in_image, weights, products, strength)
            pose, shape = update(pdm, pose, shape, delta)
        after = _Pass(pose, shape, landmarks, likelihoods)
        positions = _positions(maps, landmarks)
        record = _Record(jnp.array(True), positions, shifts, likelihoods, delta)
        if not params.arithmetic.early_stop:
            return after, record
        stopped = (index > 0) & (norm(landmarks - carry.before, 2) < params.tolerance)
        return _select(stopped, carry, after), record._replace(performed=~stopped)

    carry, records = lax.scan(iteration, carry, jnp.arange(params.iterations))
    landmarks = project(pdm, carry.pose, carry.shape)
    positions = jnp.concatenate([records.positions, _positions(maps, landmarks)[None]])
    return carry, landmarks, records._replace(positions=positions)


def _mean_shifts(
    maps: _Maps, params: FitParams, scale: Int[Array, ""], landmarks: Float[Array, "n 2"]
) -> tuple[Float[Array, "n 2"], Float[Array, " n"]]:
    """Mean shifts of the landmarks, in map pixels, and their likelihoods; 0 for invisible ones."""
    offsets = _positions(maps, landmarks) + meanshift.centre(maps.responses)
    at = maps.responses, offsets, params.kernel_width[scale]
    tabulated = params.arithmetic.tabulated_kernel
    shifts, likelihoods = meanshift.mean_shift(*at, tabulated=tabulated)
    if tabulated:  # the likelihood never is
        _, likelihoods = meanshift.mean_shift(*at)
    visible = maps.visible
    return jnp.where(visible[:, None], shifts, 0.0), jnp.where(visible, likelihoods, 0.0)


def _positions(maps: _Maps, landmarks: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """Where landmarks are, from the middle of their maps, in map pixels."""
    return apply_similarity(maps.to_reference, landmarks - maps.base)


def _freed(
    maps: _Maps, params: FitParams, state: _State, landmarks: Float[Array, "n 2"]
) -> Float[Array, "n 2"]:
    """Landmarks moved by the part `params.freedom` of their mean shifts in the last scale's maps;
    those of a face that is too small stay, as it may have ended at an earlier scale."""
    if params.freedom is None:
        return landmarks
    last = jnp.array(_used(params)[-1])
    # A kernel that is read from a table has no slope.
    exact = params.replace(arithmetic=EXACT)
    shifts, _ = _mean_shifts(maps, exact, last, landmarks)
    shifts = apply_similarity(maps.to_image, shifts)
    parts = jnp.broadcast_to(jnp.asarray(params.freedom), landmarks.shape[:1])
    return landmarks + jnp.where(state.too_small, 0.0, parts[:, None] * shifts)


def _status(
    before: Float[Array, "n 2"],
    landmarks: Float[Array, "n 2"],
    seen: Float[Array, "n 1 1"],
    start: _State,
    state: _State,
) -> Int[Array, ""]:
    size = jnp.max(before.max(0) - before.min(0))
    shifted = jnp.max(jnp.abs(landmarks.mean(0) - before.mean(0)))
    zoom = state.pose.scale / start.pose.scale
    strayed = (shifted > size) | (zoom > LARGEST_ZOOM) | (zoom < 1 / LARGEST_ZOOM)
    finite = jnp.all(jnp.isfinite(landmarks)) & jnp.isfinite(state.likelihood)
    return jnp.select(
        [~finite, seen.max() == seen.min(), state.too_small, strayed, state.settled],
        [
            jnp.int32(FitStatus.NOT_FINITE),
            jnp.int32(FitStatus.NOTHING_SEEN),
            jnp.int32(FitStatus.FACE_TOO_SMALL),
            jnp.int32(FitStatus.DIVERGED),
            jnp.int32(FitStatus.CONVERGED),
        ],
        jnp.int32(FitStatus.ITERATION_LIMIT),
    )


def _select(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
