"""Derivatives of a whole fit by everything that they are taken by, and the ways to take them."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import default_params, planted

import jclnf
from jclnf.fitting import fit_from
from jclnf.geometry import MODE_LIMIT, pose_from_box
from jclnf.params import DERIVATIVES, as_dtype

STEP = 1e-7
"""Of central differences; larger ones cross lines between pixels, where sampling has kinks."""
NOISE = 1e-7
"""Of central differences: rounding of a number of some tens over two steps."""
ITERATIONS = 50
"""After which fits from `start` have converged."""


@pytest.fixture(scope="module")
def face():
    return planted()


@pytest.fixture(scope="module")
def start(face):
    return (face.box + [3, -2, 0, 0]) * [1, 1, 1.04, 0.98]


def at_of(face, start, dtype=float, **changes):
    """All that is differentiated. Fits see the second scale alone, of which half as much is
    compiled; `test_fit` has derivatives through two."""
    params = default_params(
        weight_factor=jnp.array([0.8, 1.5]), iterations=ITERATIONS, windows=(0, 7)
    )
    return as_dtype(
        {
            "params": params.replace(**changes),
            "experts": face.model.experts,
            "pdm": face.model.pdm,
            "box": jnp.asarray(start),
            "rotation": jnp.array([0.02, -0.03, 0.01]),
            "image": jnp.asarray(face.image),
        },
        dtype,
    )


def fitted(at, derivatives):
    params = at["params"].replace(derivatives=derivatives)
    model = jclnf.Model(at["pdm"], at["experts"], params)
    return jclnf.fit(model, at["image"], at["box"], init=at["rotation"])


ALL, LAST_MODE, SUM = np.eye(3)
"""What `measure` is to return. As one compiled program does for all of them, it is a weight."""


def measure(result, what):
    """One number of landmarks, pose and likelihood; or the last mode, or the landmarks' sum."""
    pose = jnp.sum(result.pose.rotation * jnp.array([3.0, -2.0, 5.0])) + result.pose.scale
    everything = jnp.sum(jnp.sin(result.landmarks / 30)) + pose + result.likelihood
    return jnp.stack([everything, result.shape[-1], result.landmarks.sum()]) @ what


@partial(jax.jit, static_argnames="derivatives")
def reverse(at, what, derivatives):
    """(the number, the fit), and the derivatives by all that it is fitted with."""

    def loss(at):
        result = fitted(at, derivatives)
        return measure(result, what), result

    return jax.value_and_grad(loss, has_aux=True, allow_int=True)(at)


@partial(jax.jit, static_argnames="derivatives")
def forward(at, along, derivatives):
    """The derivative in a direction."""
    floats, rest = eqx.partition(at, eqx.is_inexact_array)

    def loss(floats):
        return measure(fitted(eqx.combine(floats, rest), derivatives), ALL)

    return jax.jvp(loss, (floats,), (along,))[1]


def directions(at, rng):
    """A random direction in each kind of leaf that counts, by its name; all else stays."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(at)
    for index, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not eqx.is_inexact_array(leaf) or name.endswith(("centres", "components.9")):
            continue
        along = rng.standard_normal(leaf.shape) * (np.abs(np.asarray(leaf)).mean() + 1e-3)
        changes = [np.zeros(other.shape) for _, other in leaves]
        changes[index] = along
        yield name, jax.tree.unflatten(structure, changes)


def moved(at, by, step):
    return jax.tree.map(
        lambda a, b: jnp.asarray(np.asarray(a) + step * b) if eqx.is_inexact_array(a) else a, at, by
    )


def inner(gradient, along):
    """Sum of products over the leaves that have derivatives."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True)
    return sum(float(np.vdot(a, b)) for a, b in pairs if a.dtype != jax.dtypes.float0)


@pytest.mark.slow
def test_every_leaf_agrees_with_central_differences(face, start):
    with jax.enable_x64(True):
        at = at_of(face, start)
        _, gradient = reverse(at, ALL, "unrolled")
        names = []
        for name, along in directions(at, np.random.default_rng(0)):
            step = STEP if name != "image" else 1e-4
            ends = [reverse(moved(at, along, by), ALL, "unrolled")[0][0] for by in (step, -step)]
            numeric = float(ends[0] - ends[1]) / (2 * step)
            assert numeric != 0, name
            assert inner(gradient, along) == pytest.approx(numeric, rel=1e-4, abs=NOISE), name
            names.append(name)
        assert {"pdm.eigenvalues", "experts.beta", "params.weight_factor", "image"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("derivatives", ["unrolled", "implicit"])
def test_forward_and_reverse_mode_agree(face, start, derivatives):
    with jax.enable_x64(True):
        at = at_of(face, start)
        _, gradient = reverse(at, ALL, derivatives)
        along = jax.tree.map(
            lambda a: jnp.asarray(np.cos(np.arange(a.size)).reshape(a.shape)),
            eqx.filter(at, eqx.is_inexact_array),
        )
        gradient = eqx.filter(gradient, lambda a: a.dtype != jax.dtypes.float0)
        assert forward(at, along, derivatives) == pytest.approx(inner(gradient, along), rel=1e-8)


@pytest.mark.slow
def test_rematerialised_derivatives_are_the_unrolled_ones(face, start):
    with jax.enable_x64(True):
        at = at_of(face, start)
        both = [reverse(at, ALL, derivatives)[1] for derivatives in ("unrolled", "rematerialised")]
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            if a.dtype != jax.dtypes.float0:
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(a).max())


def last_scale(gradient):
    """Derivatives by what acts on the last scale alone."""
    params, experts = gradient["params"], gradient["experts"]
    arrays = [params.regularisation, params.kernel_width, params.weight_factor]
    arrays += [experts.bias, experts.weights, experts.alpha, experts.beta, experts.confidence]
    return np.concatenate([np.ravel(array[-1]) for array in arrays])


@pytest.mark.slow
def test_implicit_derivatives_are_those_of_many_iterations(face, start):
    with jax.enable_x64(True):
        at, found = at_of(face, start), {}
        for derivatives in ("rematerialised", "implicit"):
            (_, result), gradient = reverse(at, ALL, derivatives)
            assert jclnf.FitStatus(int(result.status)) == jclnf.FitStatus.CONVERGED
            found[derivatives] = last_scale(gradient), result
        (unrolled, first), (implicit, second) = found.values()
        np.testing.assert_allclose(second.landmarks, first.landmarks, atol=1e-9)
        np.testing.assert_allclose(second.likelihood, first.likelihood, atol=1e-12)
        np.testing.assert_allclose(
            implicit, unrolled, rtol=1e-3, atol=1e-4 * np.abs(unrolled).max()
        )


@pytest.mark.slow
def test_implicit_derivatives_of_the_shape_model_hold_the_windows(face, start):
    """A second fit whose windows stay where the first one's were has the same derivative."""
    with jax.enable_x64(True):
        gradient = reverse(at_of(face, start), SUM, "implicit")[1]["pdm"]
        assert all(np.isfinite(array).all() for array in jax.tree.leaves(gradient))
        # Moving the mean shape sideways moves the whole fit back to where it was.
        assert np.abs(np.asarray(gradient.mean)).max() > 0
        assert abs(float(gradient.mean[:, 0].sum())) < 0.05 * np.abs(gradient.mean[:, 0]).sum()


@pytest.mark.slow
def test_a_mode_at_its_limit_stays_there(face, start):
    """Its derivative by the variance of the mode is that of the limit."""
    with jax.enable_x64(True):
        at = at_of(face, start, regularisation=jnp.array([1e-6, 1e-6]))
        variances = at["pdm"].eigenvalues.at[-1].set(1e-2)
        at = at | {"pdm": dataclasses.replace(at["pdm"], eigenvalues=variances)}
        limit = MODE_LIMIT * 0.1
        for derivatives in ("rematerialised", "implicit"):
            (end, _), gradient = reverse(at, LAST_MODE, derivatives)
            slope = gradient["pdm"].eigenvalues[-1]
            assert abs(float(end)) == pytest.approx(limit)
            assert slope == pytest.approx(np.sign(end) * MODE_LIMIT / 2 / 0.1, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("derivatives", "dtype"),
    # Rematerialised derivatives are the operations of the unrolled ones, which have a program less.
    [("unrolled", "f4"), ("implicit", "f4"), *((way, "f8") for way in DERIVATIVES)],
)
def test_degenerate_places_have_finite_derivatives(face, start, derivatives, dtype):
    with jax.enable_x64(dtype == "f8"):
        at = at_of(face, start, dtype, iterations=ITERATIONS if dtype == "f8" else 3)
        experts = at["experts"]
        # Landmark 0 is not shown in the second view, which a turned head meets.
        experts = dataclasses.replace(experts, centres=experts.centres.at[:, 1].set(0.1))
        at = at | {"experts": experts, "rotation": jnp.zeros(3, dtype)}
        half = np.array(at["image"])
        half[:, :120] = 77.0
        cases = {
            "frontal": {},
            "a flat image": {"image": jnp.full_like(at["image"], 77.0)},
            "flat patches": {"image": jnp.asarray(half)},
            "landmarks outside the image": {"box": at["box"] - np.array([90, 90, 0, 0], dtype)},
            "a view that hides a landmark": {"rotation": jnp.full(3, 0.1, dtype)},
        }
        for name, changes in cases.items():
            _, found = reverse(at | changes, ALL.astype(dtype), derivatives)
            for leaf in jax.tree.leaves(found):
                assert leaf.dtype == jax.dtypes.float0 or np.isfinite(leaf).all(), name
            if name != "a flat image":
                assert np.abs(found["params"].regularisation[-1]) > 0, name


def test_a_landmark_at_the_border_of_its_window_has_derivatives(face):
    """Where the fit may go is not limited by the window: no slope is cut off there."""
    with jax.enable_x64(True):
        model, params = as_dtype(face.model, float), as_dtype(default_params(iterations=2), float)
        params = params.replace(windows=(3, 0), kernel_width=jnp.array([3.0, 3.0]))
        pose = pose_from_box(model.pdm, jnp.asarray(face.box, float), jnp.zeros(3))

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def end(shift):
            start = dataclasses.replace(pose, translation=pose.translation + shift)
            result = fit_from(
                model, jnp.asarray(face.image, float), start, model.pdm.mean_shape(), params
            )
            return jnp.sum(result.landmarks), result.trace.peak_offset

        shift = np.array([9.0, -7.0])
        (_, offsets), slope = end(shift)
        assert np.abs(np.asarray(offsets[0, 1, -1])).max() >= 1
        for axis, step in enumerate(STEP * np.eye(2)):
            numeric = (end(shift + step)[0][0] - end(shift - step)[0][0]) / (2 * STEP)
            assert slope[axis] == pytest.approx(float(numeric), rel=1e-4)


def test_an_unknown_way_is_named():
    with pytest.raises(
        jclnf.errors.ParamsError, match=r"'backwards'.*unrolled, rematerialised, implicit"
    ):
        default_params(derivatives="backwards")
