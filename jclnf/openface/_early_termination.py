"""Fits from several start rotations that end as soon as one start is convincing.

Each start is fitted at the first scale only. One whose likelihood there passes its view's cutoff
is accepted, and alone fitted to the end; where none is, the best few are. Source: Baltrusaitis,
Zadeh, Lim, Morency, "OpenFace 2.0: facial behavior analysis toolkit" (FG 2018), section 3.1.2.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jclnf.errors import check_fields
from jclnf.experts import PatchExperts
from jclnf.fitting import (
    FitResult,
    FitStatus,
    Model,
    StartRule,
    fit_from,
    likelihood_of,
    map_faces,
    one_by_one,
    postprocess,
)
from jclnf.geometry import pose_from_box
from jclnf.params import FitParams

COMPLETED = 3
"""Starts that are fitted to the end where none is accepted."""


class EarlyTermination(StartRule):
    """When a fit at the first scale is good enough, by the view that it used.

    A start is accepted if `likelihood * weight + bias > cutoff`. That score also ranks the starts
    where none is: the weights make the likelihoods of views comparable.
    """

    weight: Float[Array, " v"]
    bias: Float[Array, " v"]
    cutoff: Float[Array, " v"]

    def __check_init__(self) -> None:
        check_fields(self, "early termination")

    def misfit(self, experts: PatchExperts) -> str | None:
        """See `StartRule.misfit`."""
        views = experts.centres.shape[1]
        if len(self.weight) == views:
            return None
        return f"the rule for early termination is not one for the {views} views"

    def score(
        self, likelihood: Float[Array, "*r"], view: Int[Array, "*r"]
    ) -> tuple[Float[Array, "*r"], Bool[Array, "*r"]]:
        """The score of fits at the first scale, and whether it makes them accepted.

        A likelihood that is not a number scores minus infinity.
        """
        score = likelihood * self.weight[view] + self.bias[view]
        score = jnp.where(jnp.isnan(score), -math.inf, score)
        return score, score > self.cutoff[view]

    def best(
        self,
        model: Model,
        image: Any,
        box: Float[Array, "4"],
        rotations: Float[Array, "r 3"],
        params: FitParams,
    ) -> FitResult:
        """The first start that is accepted, or the likeliest of the completed ones.

        Where starts run one after the other, those after the accepted one cost next to nothing; as
        a batch, all are fitted at the first scale, and `COMPLETED` starts to the end. Derivatives
        are those of the fit that is kept.
        """

        def start(rotation: Float[Array, "3"]) -> Any:
            first = begin(model, image, box, rotation, params)
            return first, *self.score(first.likelihood, first.trace.view[0])

        def unless(done: Bool[Array, ""], rotation: Float[Array, "3"]) -> Any:
            started = lax.cond(done, lambda: nothing, lambda: start(rotation))
            return done | started[2], started

        if one_by_one():
            like = jax.eval_shape(start, rotations[0])
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
            _, (started, score, accepted) = lax.scan(unless, jnp.array(False), rotations)
        else:
            started, score, accepted = jax.vmap(start)(rotations)
        some = accepted.any()
        count = min(COMPLETED, len(score))
        best = jnp.where(some, jnp.argmax(accepted), lax.top_k(score, count)[1])
        needed = (jnp.arange(count) == 0) | ~some

        def completed(start: tuple[FitResult, Bool[Array, ""]]) -> FitResult:
            first, needed = start
            # What is not needed only has to have the shape of a completed fit.
            return lax.cond(
                needed,
                lambda first: complete(model, image, first, params),
                lambda first: _padded(first, params),
                first,
            )

        fits = map_faces(completed, (jax.tree.map(lambda array: array[best], started), needed))
        likelihood = jnp.where(needed, jax.vmap(likelihood_of)(fits), -math.inf)
        kept = jax.tree.map(lambda array: array[jnp.argmax(likelihood)], fits)
        return postprocess(model, image, kept, params)


def begin(model: Model, image: Any, box: Any, rotation: Any, params: FitParams) -> FitResult:
    """The fit at the first scale from a start in a box."""
    dtype = model.pdm.mean.dtype
    pose = pose_from_box(model.pdm, jnp.asarray(box, dtype), jnp.asarray(rotation, dtype))
    first, _ = _split(params)
    return fit_from(model, image, pose, model.pdm.mean_shape(), first)


def complete(model: Model, image: Any, first: FitResult, params: FitParams) -> FitResult:
    """The fit at the other scales from where that at the first one ended.

    As in a fit in one go, a face that became too small stays as it was. The face has diverged if
    it left either the box or its place after the first scale.
    """
    _, later = _split(params)
    if later is None:
        return first
    rest = fit_from(model, image, first.pose, first.shape, later)
    status = jnp.where(
        (first.status == FitStatus.DIVERGED)
        & (rest.status != FitStatus.NOT_FINITE)
        & (rest.status != FitStatus.FACE_TOO_SMALL),
        first.status,
        rest.status,
    )
    trace = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.trace, rest.trace)
    whole = eqx.tree_at(lambda fit: (fit.status, fit.trace), rest, (status, trace))
    small = first.status == FitStatus.FACE_TOO_SMALL
    return jax.tree.map(lambda a, b: jnp.where(small, a, b), _padded(first, params), whole)


def _padded(first: FitResult, params: FitParams) -> FitResult:
    """A fit at the first scale with a trace as long as that of a whole fit."""
    scales = sum(window > 0 for window in params.windows)
    trace = jax.tree.map(
        lambda a: jnp.concatenate([a, jnp.zeros((scales - 1, *a.shape[1:]), a.dtype)]), first.trace
    )
    return eqx.tree_at(lambda fit: fit.trace, first, trace)


def _split(params: FitParams) -> tuple[FitParams, FitParams | None]:
    """The settings for the first scale that is fitted, and for the others if there are any."""
    windows = params.windows
    at = next(index for index, window in enumerate(windows) if window)
    first = tuple(window if k == at else 0 for k, window in enumerate(windows))
    later = tuple(0 if k == at else window for k, window in enumerate(windows))
    return params.replace(windows=first), params.replace(windows=later) if any(later) else None
