"""A face followed over the frames of a video: each fit starts where the one before ended.

Source: Baltrusaitis, Robinson, Morency, "OpenFace: an open source facial behavior analysis
toolkit" (WACV 2016), section 3.1, for tracking by the fit itself, with a validator that says when
the face is lost.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.errors import ImageError, ParamsError
from jclnf.experts import WholeFaceExperts
from jclnf.fitting import (
    FitResult,
    Model,
    check_inputs,
    check_levels,
    fit_face,
    fit_from,
    postprocess,
    prepared,
)
from jclnf.geometry import Pose
from jclnf.openface import ROTATIONS
from jclnf.params import Arithmetic, FitParams, as_dtype

TRACKING_WINDOWS = (0, 9, 7, 0)
"""OpenFace's windows by scale for a face that was seen in the frame before."""


class TrackParams(eqx.Module):
    """Settings of tracking."""

    detection: FitParams
    """For a face that was just found, and for one that was lost in the frame before. Its
    `rotations` are the starts of a face that was just found."""
    tracking: FitParams
    """For a face that was seen in the frame before; as `detection`, but for windows, iterations and
    numbers."""

    def __check_init__(self) -> None:
        for name in ("arithmetic", "parts", "uncertainty", "derivatives"):
            ours, theirs = getattr(self.tracking, name), getattr(self.detection, name)
            if ours != theirs:
                raise ParamsError(
                    f"{name} is {ours!r} for tracking and {theirs!r} for detection: they must agree"
                )

    @staticmethod
    def of(model: Model) -> "TrackParams":
        """The model's own settings.

        A face that was seen in the frame before is fitted without the model's coarsest scale, if
        that leaves one; with experts for each landmark also without any finer than the third, and
        in smaller windows.
        """
        if not isinstance(model.experts, WholeFaceExperts):
            return _with_small_windows(model.defaults)
        # Their windows cost little, and must hold whatever a network may find.
        return _with_windows(model.defaults, (0, *model.defaults.windows[1:]))

    @staticmethod
    def openface(model: Model, *, arithmetic: str | Arithmetic = "openface") -> "TrackParams":
        """OpenFace's settings for videos, in its arithmetic unless told otherwise."""
        detection = FitParams.openface(model, arithmetic=arithmetic)
        return _with_small_windows(detection.replace(rotations=ROTATIONS))


def _with_small_windows(detection: FitParams) -> TrackParams:
    small = tuple(
        min(narrow, window)
        for narrow, window in zip(TRACKING_WINDOWS, detection.windows, strict=False)
    )
    return _with_windows(detection, small + (0,) * (len(detection.windows) - len(small)))


def _with_windows(detection: FitParams, windows: tuple[int, ...]) -> TrackParams:
    """Tracking in these windows, or in those of detection where they leave no scale."""
    tracking = detection.replace(rotations=None)
    return TrackParams(detection, tracking.replace(windows=windows) if any(windows) else tracking)


class TrackState(eqx.Module):
    """A face after a frame: all that its fit in the next one needs."""

    pose: Pose
    """In pixels of the frame."""
    shape: Float[Array, " m"]
    seen: Bool[Array, ""]
    """Whether the face was fitted with success in the last frame."""
    failures: Int[Array, ""]
    """Frames in a row, up to the last one, in which the face was followed and not seen."""

    @staticmethod
    def after(result: FitResult) -> "TrackState":
        """The state of a face that was just found by this fit, whether with success or without."""
        return TrackState(
            pose=result.pose,
            shape=result.shape,
            seen=jnp.asarray(result.success),
            failures=jnp.int32(0),
        )

    def next(self, result: FitResult) -> "TrackState":
        """The state after one more frame, in which this is the face's fit.

        A fit that failed by its status (the face too small, or the fit diverged) says nothing about
        where the face is: pose and shape then remain, for the next fit to start from.
        """
        pose, shape = jax.tree.map(
            lambda new, old: jnp.where(result.ok, new, old),
            (result.pose, result.shape),
            (self.pose, self.shape),
        )
        failures = jnp.where(result.success, 0, self.failures + 1)
        return TrackState(pose, shape, jnp.asarray(result.success), failures.astype(jnp.int32))


def track_frame(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    state: TrackState,
    params: TrackParams,
) -> tuple[TrackState, FitResult]:
    """Fit a face in the next frame, from where it was in the last one.

    A face that was seen there is fitted with `params.tracking`, another one with
    `params.detection`. A pure function that is neither compiled nor checks its inputs. Under
    `vmap` both fits are computed.

    Returns:
        The state after this frame, and the fit. Its trace is empty: it has no scales.
    """
    return _step(_Prepared(model, model), image, as_dtype(state, model.pdm.mean.dtype), params)


def track(
    model: Model,
    frames: Real[Array, "t h w"] | np.ndarray,
    start: TrackState | Any,
    params: TrackParams | None = None,
) -> tuple[TrackState, FitResult]:
    """Fit one face in each of several frames that follow on each other.

    One compiled loop over all frames. Pure: `jax.jit`, `jax.vmap` and `jax.grad` apply to it. It
    never looks for a face that it has lost anywhere else than where it was: do so between calls, or
    let a `jclnf.Tracker` do it. Each new number or size of frames costs a compilation.

    Args:
        model: from `load_model` or `load_openface`.
        frames: grey levels 0-255, of any floating-point type or uint8.
        start: the state that an earlier call returned; or a box (x, y, w, h) around the face in the
            first frame.
        params: settings; `TrackParams.of(model)` if not given.

    Returns:
        The state after the last frame, and the fits, each array with a leading axis for the
        frames. `result.success` says in which of them the face was seen. Traces are empty.

    Raises:
        ImageError, BoxError, ParamsError: inputs that cannot be tracked in, as `jclnf.fit`.
    """
    params = TrackParams.of(model) if params is None else params
    if not hasattr(frames, "shape") or len(frames.shape) != 3 or 0 in frames.shape:
        shape = getattr(frames, "shape", type(frames).__name__)
        raise ImageError(f"frames must be grey, (t, h, w) and not empty, not {shape}")
    if isinstance(start, TrackState):
        check_inputs(model, frames[0], np.ones(4), params.detection)
        start = as_dtype(start, model.pdm.mean.dtype)
    else:
        start = check_inputs(model, frames[0], start, params.detection)
    check_inputs(model, frames[0], np.ones(4), params.tracking)
    check_levels(frames)
    models = _Prepared(prepared(model, params.tracking), prepared(model, params.detection))
    return _track(models, frames, start, params)


class _Prepared(eqx.Module):
    """A model prepared for the windows of tracking and for those of detection."""

    tracking: Model
    detection: Model


@eqx.filter_jit
def _track(
    models: _Prepared,
    frames: Real[Array, "t h w"] | np.ndarray,
    start: TrackState | Float[Array, "4"],
    params: TrackParams,
) -> tuple[TrackState, FitResult]:
    frames = jnp.asarray(frames)
    models = _Prepared(
        models.tracking.prepare(params.tracking), models.detection.prepare(params.detection)
    )

    def step(state: TrackState, image: Real[Array, "h w"]) -> tuple[TrackState, FitResult]:
        return _step(models, image, state, params)

    if isinstance(start, TrackState):
        return lax.scan(step, start, frames)
    first = found(models.detection, frames[0], start, params)
    state, others = lax.scan(step, TrackState.after(first), frames[1:])
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)


def found(
    model: Model, image: Real[Array, "h w"] | np.ndarray, box: Any, params: TrackParams
) -> FitResult:
    """The fit of a face that was just found in a box, neither compiled nor checked."""
    detection = params.detection
    return fit_face(model, image, box, detection.rotations, detection).without_trace()


def follow(
    model: Model,
    image: Real[Array, "h w"] | np.ndarray,
    state: TrackState,
    settings: FitParams,
) -> tuple[TrackState, FitResult]:
    """`track_frame` with one of its two settings, whether the face was seen or not."""
    result = fit_from(model, image, state.pose, state.shape, settings)
    result = postprocess(model, image, result.without_trace(), settings)
    return state.next(result), result


def _step(
    models: _Prepared,
    image: Real[Array, "h w"] | np.ndarray,
    state: TrackState,
    params: TrackParams,
) -> tuple[TrackState, FitResult]:
    def fitted(model: Model, settings: FitParams) -> FitResult:
        return fit_from(model, image, state.pose, state.shape, settings).without_trace()

    result = lax.cond(
        state.seen,
        lambda: fitted(models.tracking, params.tracking),
        lambda: fitted(models.detection, params.detection),
    )
    result = postprocess(models.tracking, image, result, params.tracking)
    return state.next(result), result
