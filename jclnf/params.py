"""Settings of a fit: the static schedule, and the numbers that may be tuned."""

import dataclasses
import math
import operator
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jclnf.errors import ParamsError, is_concrete

_FINEST_TUNED_SCALE = 2  # OpenFace's rules stop at its third scale; finer ones repeat its settings


@runtime_checkable
class HasScalings(Protocol):
    """A model, or patch experts."""

    @property
    def scalings(self) -> tuple[float, ...]:
        """Reference pixels per millimetre of each scale."""


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Which of OpenFace's numerical short cuts a fit follows; the default is none.

    Everything else is the same in both arithmetics, discontinuous rules included: shape parameters
    are clamped, negative responses lifted, neurons of tiny alpha left out, the view is the nearest
    one, the weights are 1 when the weight factor is 0, and a face that is too small ends the fit
    (see `PatchExperts.smallest_scale`).
    """

    fixed_point_sampling: bool = False
    """Read areas at positions rounded as OpenCV's `warpAffine` does, see `sample_areas`."""
    tabulated_kernel: bool = False
    """Read the mean shift's kernel from a table in steps of 0.1 px, see `meanshift.mean_shift`."""
    early_stop: bool = False
    """End a pass once the shape moves by less than `FitParams.tolerance`. If false, every
    iteration is performed, so that the result is a smooth function of its input."""
    sparse_cen: bool = False
    """Evaluate convolutional experts (CEN) at every second pixel and average between those, see
    `experts.cen`."""

    @staticmethod
    def named(name: "str | Arithmetic") -> "Arithmetic":
        """`"exact"` (none of the short cuts), `"openface"` (all of them), or one given as such."""
        if isinstance(name, Arithmetic):
            return name
        if name not in ARITHMETICS:
            raise ParamsError(f"arithmetic {name!r} is not one of {', '.join(ARITHMETICS)}")
        return ARITHMETICS[name]


EXACT = Arithmetic()
OPENFACE = Arithmetic(
    fixed_point_sampling=True, tabulated_kernel=True, early_stop=True, sparse_cen=True
)
ARITHMETICS = {"exact": EXACT, "openface": OPENFACE}

DERIVATIVES = ("unrolled", "rematerialised", "implicit")
"""The ways to take derivatives of a fit, see `FitParams.derivatives`."""


class FitParams(eqx.Module):
    """Settings of a fit, `s` scales.

    The arrays are differentiable leaves; the rest is static and decides what is compiled.
    """

    regularisation: Float[Array, " s"] = eqx.field(converter=lambda v: _floats(v))
    """Strength of the shape prior at each scale."""
    kernel_width: Float[Array, " s"] = eqx.field(converter=lambda v: _floats(v))
    """Standard deviation of the mean-shift kernel at each scale, in response-map pixels."""
    weight_factor: Float[Array, " s"] = eqx.field(converter=lambda v: _floats(v))
    """Factor on the experts' confidences at each scale; 0 weighs all landmarks by 1."""
    rotations: Float[Array, "r 3"] | None = eqx.field(
        default=None,
        kw_only=True,
        converter=lambda r: None if r is None else jnp.asarray(as_rotations(r)),
    )
    """Start rotations that are tried, Euler angles (pitch, yaw, roll) in radians; the likeliest fit
    is kept. None: the model's learned start, or the frontal mean shape where it has none."""
    freedom: Float[Array, "..."] | None = eqx.field(
        default=None, kw_only=True, converter=lambda f: None if f is None else _floats(f)
    )
    """How far landmarks leave the shape model in the end, towards where their responses have them:
    parts of the last mean shift, one number or one for each landmark `(n,)`. Pose and shape are
    those of the model. None: landmarks are the model's."""
    windows: tuple[int, ...] = eqx.field(static=True, converter=lambda w: _windows(w))
    """Side of the response maps at each scale, in reference pixels; 0 leaves the scale out. Experts
    whose responses are Gaussians look everywhere: for them any other side is the same."""
    iterations: int = eqx.field(static=True, default=5, converter=lambda n: _whole(n))
    """Iterations of the rigid, and of the non-rigid pass at each scale (at most, if they stop)."""
    arithmetic: Arithmetic = eqx.field(
        static=True, default=Arithmetic(), converter=Arithmetic.named
    )
    tolerance: float = eqx.field(static=True, default=0.01)
    """A pass has converged when an iteration moves the shape by less, in pixels (the norm over
    all coordinates of all landmarks)."""
    parts: bool = eqx.field(static=True, default=False)
    """Whether the model's part models refine the fitted face."""
    uncertainty: bool = eqx.field(static=True, default=False)
    """Whether a fit says how far each landmark may be off, see `FitResult.covariance`."""
    derivatives: str = eqx.field(static=True, default="unrolled")
    """How derivatives of a fit are taken, one of `DERIVATIVES`; the fit itself is the same.

    - `"unrolled"`: through every iteration of every scale. Exact; keeps everything that they
      computed.
    - `"rematerialised"`: the same numbers, but only where each scale begins is kept, and what
      happened in it is computed again. A fraction of the memory; on a CPU faster as well.
    - `"implicit"`: from the implicit function theorem where the last scale ended, its windows held
      where they stand. Costs least, whatever the number of iterations. Valid where the last pass
      has converged. With respect to what acts through earlier scales alone (their settings and
      experts, the box, the start rotation) it is zero.
    """

    def __check_init__(self) -> None:
        scales = len(self.windows)
        for name in ("regularisation", "kernel_width", "weight_factor"):
            shape = jnp.shape(getattr(self, name))
            if shape != (scales,):
                raise ParamsError(
                    f"{name} has the shape {shape}, but there are {scales} windows: give one "
                    "number for each scale"
                )
        for name, least in (("regularisation", 0.0), ("kernel_width", 1e-6)):
            values = getattr(self, name)
            if not isinstance(values, jax.core.Tracer) and not np.all(np.asarray(values) >= least):
                raise ParamsError(f"{name} is {np.asarray(values).tolist()}; it must be positive")
        if any(window < 0 or window == 1 for window in self.windows) or not any(self.windows):
            raise ParamsError(f"windows {self.windows}: sides must be 0 (left out) or at least 2")
        if self.derivatives not in DERIVATIVES:
            raise ParamsError(
                f"derivatives {self.derivatives!r}: they are one of {', '.join(DERIVATIVES)}"
            )
        if not (isinstance(self.tolerance, (int, float)) and self.tolerance >= 0):
            raise ParamsError(f"tolerance is {self.tolerance!r}; it must be 0 or more")
        if self.iterations < 1:
            raise ParamsError(f"iterations is {self.iterations}; it must be at least 1")

    def replace(self, **changes: Any) -> "FitParams":
        """A copy with some settings changed, as in `params.replace(iterations=10)`."""
        names = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ParamsError(f"no setting {', '.join(unknown)}; there are {', '.join(names)}")
        return dataclasses.replace(self, **changes)

    @staticmethod
    def openface(model: HasScalings, *, arithmetic: str | Arithmetic = "openface") -> "FitParams":
        """OpenFace's settings for images, in its arithmetic unless told otherwise.

        These, and the two that follow, start from the frontal mean shape alone, as OpenFace's
        program for images does, and refine parts if the model has any.
        """
        return _openface(
            model,
            windows=(11, 9, 7, 5),
            regularisation=25.0,
            kernel_width=1.5,
            weight_factor=0.0,
            iterations=5,
            arithmetic=Arithmetic.named(arithmetic),
        )

    @staticmethod
    def openface_wild(
        model: HasScalings, *, arithmetic: str | Arithmetic = "openface"
    ) -> "FitParams":
        """OpenFace's settings "in the wild": larger windows, more iterations, weights."""
        return _openface(
            model,
            windows=(15, 13, 11, 11),
            regularisation=35.0,
            kernel_width=1.25,
            weight_factor=2.5,
            iterations=10,
            arithmetic=Arithmetic.named(arithmetic),
        )

    @staticmethod
    def openface_ceclm(
        model: HasScalings, *, arithmetic: str | Arithmetic = "openface"
    ) -> "FitParams":
        """OpenFace's settings for convolutional experts: those for images, but the kernel at the
        coarsest scale is 1.5 times as wide, and the regularisation there 0.9 times as strong."""
        return _openface(
            model,
            windows=(11, 9, 7, 5),
            regularisation=0.9 * 25.0,
            kernel_width=1.5 * 1.5,
            weight_factor=0.0,
            iterations=5,
            arithmetic=Arithmetic.named(arithmetic),
        )


def as_rotations(rotations: Any) -> Any:
    """One start rotation or several as an array `(r, 3)`, JAX's if they are one.

    Raises:
        ParamsError: it is of another shape.
    """
    traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(rotations))
    try:
        array = _floats(rotations) if traced else np.asarray(rotations, jnp.result_type(float))
    except (TypeError, ValueError):
        raise ParamsError(f"a rotation is three Euler angles, not {rotations!r}") from None
    array = array.reshape(1, 3) if array.shape == (3,) else array
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise ParamsError(f"rotations are three Euler angles each, (r, 3), not {array.shape}")
    return array


def _floats(values: Any) -> Any:
    """An array of floating-point numbers, also of a list or of whole numbers."""
    array = jnp.asarray(values)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _whole(iterations: Any) -> int:
    try:
        return operator.index(iterations)
    except TypeError:
        raise ParamsError(f"iterations is {iterations!r}; it must be a whole number") from None


def _windows(windows: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(window) for window in windows)
    except TypeError:
        raise ParamsError(f"windows {windows!r}: they must be whole numbers, one a scale") from None


def _openface(
    model: HasScalings,
    *,
    windows: tuple[int, ...],
    regularisation: float,
    kernel_width: float,
    weight_factor: float,
    iterations: int,
    arithmetic: Arithmetic,
) -> FitParams:
    """Settings at the coarsest scale carried to the finer ones as OpenFace does.

    With `l = log2(scaling / 0.25)`: regularisation `- 15 l` (0.001 where that is not positive),
    kernel width `+ 0.25 l`, weight factor `times 1 + 2 l`; a fourth scale has the third one's `l`.
    """
    scalings = model.scalings
    if len(scalings) > len(windows):
        raise ParamsError(f"OpenFace has settings for {len(windows)} scales, not {len(scalings)}")
    tuned = [scalings[min(k, _FINEST_TUNED_SCALE)] for k in range(len(scalings))]
    octaves = [math.log2(scaling / 0.25) for scaling in tuned]
    strengths = [regularisation - 15 * octave for octave in octaves]
    return FitParams(
        regularisation=jnp.array([r if r > 0 else 0.001 for r in strengths], jnp.float32),
        kernel_width=jnp.array([kernel_width + 0.25 * octave for octave in octaves], jnp.float32),
        weight_factor=jnp.array(
            [weight_factor * (1 + 2 * octave) for octave in octaves], jnp.float32
        ),
        windows=windows[: len(scalings)],
        iterations=iterations,
        arithmetic=arithmetic,
        parts=bool(getattr(model, "parts", ())),
        rotations=jnp.zeros((1, 3), jnp.float32),
    )


def to_device(array: Any, dtype: Any = None) -> Any:
    """NumPy's numbers as a JAX array, outside of transformations: `jnp.asarray` would compile a
    program for each shape, to copy or to cast."""
    return jax.device_put(np.asarray(array, dtype))


def on_host(tree: Any) -> Any:
    """The tree in NumPy arrays. On a CPU `jax.device_get` takes four times as long: it first asks
    for a copy of each array, which elsewhere lets them all be copied at a time."""
    if jax.default_backend() == "cpu":
        return jax.tree.map(np.asarray, tree)
    return jax.device_get(tree)


def as_dtype(tree: Any, dtype: Any) -> Any:
    """The floating-point arrays of a model or of settings in another precision."""

    def cast(x: Any) -> Any:
        if not eqx.is_inexact_array(x) or x.dtype == dtype:
            return x
        if isinstance(x, jax.Array) and is_concrete(x) and not x.committed:
            # A cast by JAX would be a program to compile for each shape.
            return to_device(x, dtype)
        return x.astype(dtype)

    return jax.tree.map(cast, tree)
