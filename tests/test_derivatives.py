"""Derivatives of a whole fit by everything that they are taken by, and the ways to take them."""

import dataclasses

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


@pytest.fixture(scope="module")
def face():
    return planted()


@pytest.fixture(scope="module")
def start(face):
    return (face.box + [3, -2, 0, 0]) * [1, 1, 1.04, 0.98]


def at_of(face, start, **changes):
    """All that is differentiated, in double precision."""
    params = default_params(weight_factor=jnp.array([0.8, 1.5])).replace(**changes)
    return as_dtype(
        {
            "params": params,
            "experts": face.model.experts,
            "pdm": face.model.pdm,
            "box": jnp.asarray(start),
            "rotation": jnp.array([0.02, -0.03, 0.01]),
            "image": jnp.asarray(face.image),
        },
        float,
    )


def fitted(at, **changes):
    model = jclnf.Model(at["pdm"], at["experts"], at["params"])
    params = at["params"].replace(**changes)
    return jclnf.fit(model, at["image"], at["box"], params, init=at["rotation"])


def measure(result):
    """One number of landmarks, pose and likelihood."""
    pose = jnp.sum(result.pose.rotation * jnp.array([3.0, -2.0, 5.0])) + result.pose.scale
    return jnp.sum(jnp.sin(result.landmarks / 30)) + pose + result.likelihood


def directions(at, rng):
    """A random direction in each kind of leaf, by its name; all else stays."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(at)
    for index, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not eqx.is_inexact_array(leaf) or name.endswith("centres"):
            continue
        along = rng.standard_normal(leaf.shape) * (np.abs(np.asarray(leaf)).mean() + 1e-3)
        changes = [np.zeros(other.shape) for _, other in leaves]
        changes[index] = along
        yield name, jax.tree.unflatten(structure, changes)


def moved(at, by, step):
    return jax.tree.map(lambda a, b: a + step * b if eqx.is_inexact_array(a) else a, at, by)


def inner(gradient, along):
    """Sum of products over the leaves that have derivatives."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True)
    return sum(float(jnp.vdot(a, b)) for a, b in pairs if a.dtype != jax.dtypes.float0)


@pytest.mark.slow
def test_every_leaf_agrees_with_central_differences(face, start):
    with jax.enable_x64(True):
        at = at_of(face, start, iterations=4)

        @jax.jit
        def loss(at):
            return measure(fitted(at))

        gradient = jax.grad(loss, allow_int=True)(at)
        names = []
        for name, along in directions(at, np.random.default_rng(0)):
            step = STEP if name != "image" else 1e-4
            numeric = loss(moved(at, along, step)) - loss(moved(at, along, -step))
            numeric = float(numeric) / (2 * step)
            assert numeric != 0, name
            assert inner(gradient, along) == pytest.approx(numeric, rel=1e-4), name
            names.append(name)
        assert {"pdm.eigenvalues", "experts.beta", "params.weight_factor", "image"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("derivatives", ["unrolled", "implicit"])
def test_forward_and_reverse_mode_agree(face, start, derivatives):
    with jax.enable_x64(True):
        at = at_of(face, start, iterations=4)
        floats, rest = eqx.partition(at, eqx.is_inexact_array)

        @jax.jit
        def loss(floats):
            return measure(fitted(eqx.combine(floats, rest), derivatives=derivatives))

        gradient = jax.jit(jax.grad(loss))(floats)
        along = jax.tree.map(
            lambda a: jnp.asarray(np.cos(np.arange(a.size)).reshape(a.shape)), floats
        )
        _, forward = jax.jit(lambda a, b: jax.jvp(loss, (a,), (b,)))(floats, along)
        assert forward == pytest.approx(inner(gradient, along), rel=1e-8)


@pytest.mark.slow
def test_rematerialised_derivatives_are_the_unrolled_ones(face, start):
    with jax.enable_x64(True):
        at = at_of(face, start, iterations=4)
        both = [
            jax.jit(jax.grad(lambda p, d=d: measure(fitted(at | {"params": p}, derivatives=d))))(
                at["params"]
            )
            for d in ("unrolled", "rematerialised")
        ]
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def last_scale(gradient):
    """Derivatives by what acts on the last scale alone."""
    params, experts = gradient["params"], gradient["experts"]
    arrays = [params.regularisation, params.kernel_width, params.weight_factor]
    arrays += [experts.bias, experts.weights, experts.alpha, experts.beta, experts.confidence]
    return np.concatenate([np.ravel(array[-1]) for array in arrays])


@pytest.mark.slow
def test_implicit_derivatives_are_those_of_many_iterations(face, start):
    with jax.enable_x64(True):
        at = at_of(face, start, iterations=50)
        chosen = {name: at[name] for name in ("params", "experts")}
        found = {}
        for derivatives in ("rematerialised", "implicit"):

            @jax.jit
            def loss(chosen, derivatives=derivatives):
                result = fitted(at | chosen, derivatives=derivatives)
                return measure(result), result

            gradient, result = jax.grad(loss, allow_int=True, has_aux=True)(chosen)
            assert jclnf.FitStatus(int(result.status)) == jclnf.FitStatus.CONVERGED
            found[derivatives] = last_scale(gradient), result
        (unrolled, first), (implicit, second) = found.values()
        np.testing.assert_allclose(second.landmarks, first.landmarks, atol=1e-9)
        np.testing.assert_allclose(second.likelihood, first.likelihood, atol=1e-12)
        assert np.abs(unrolled).min() >= 0
        np.testing.assert_allclose(
            implicit, unrolled, rtol=1e-3, atol=1e-4 * np.abs(unrolled).max()
        )


@pytest.mark.slow
def test_implicit_derivatives_of_the_shape_model_hold_the_windows(face, start):
    """A second fit whose windows stay where the first one's were has the same derivative."""
    with jax.enable_x64(True):
        at = at_of(face, start, iterations=60, windows=(0, 7))

        def found(pdm):
            return fitted(at | {"pdm": pdm}, derivatives="implicit").landmarks.sum()

        gradient = jax.jit(jax.grad(found))(at["pdm"])
        assert all(np.isfinite(array).all() for array in jax.tree.leaves(gradient))
        # Moving the mean shape sideways moves the whole fit back to where it was.
        assert np.abs(np.asarray(gradient.mean)).max() > 0
        assert abs(float(gradient.mean[:, 0].sum())) < 0.05 * np.abs(gradient.mean[:, 0]).sum()


def test_a_mode_at_its_limit_stays_there(face, start):
    """Its derivative by the variance of the mode is that of the limit."""
    with jax.enable_x64(True):
        at = at_of(face, start, iterations=40)
        pdm = dataclasses.replace(at["pdm"], eigenvalues=at["pdm"].eigenvalues.at[-1].set(1e-2))

        def last_mode(eigenvalues, derivatives):
            narrow = dataclasses.replace(pdm, eigenvalues=eigenvalues)
            weak = at["params"].replace(regularisation=jnp.array([1e-6, 1e-6]))
            return fitted(at | {"pdm": narrow, "params": weak}, derivatives=derivatives).shape[-1]

        for derivatives in ("rematerialised", "implicit"):
            slope = jax.jit(jax.grad(lambda e, d=derivatives: last_mode(e, d)))(pdm.eigenvalues)
            limit = float(MODE_LIMIT * jnp.sqrt(pdm.eigenvalues[-1]))
            end = float(last_mode(pdm.eigenvalues, derivatives))
            assert abs(end) == pytest.approx(limit)
            assert slope[-1] == pytest.approx(np.sign(end) * MODE_LIMIT / 2 / 0.1, rel=1e-6)


@pytest.mark.parametrize("derivatives", DERIVATIVES)
def test_degenerate_places_have_finite_derivatives(face, start, derivatives):
    params = default_params(weight_factor=jnp.array([0.8, 1.5]), iterations=3)
    experts = face.model.experts
    # Landmark 0 is not shown in the second view, which a turned head meets.
    model = eqx.tree_at(lambda m: m.experts.centres, face.model, experts.centres.at[:, 1].set(0.1))

    @jax.jit
    def slopes(image, box, rotation):
        def loss(params, image, box, rotation, bias):
            changed = eqx.tree_at(lambda m: m.experts.bias, model, bias)
            result = jclnf.fit(changed, image, box, params, init=rotation)
            return measure(result)

        how = params.replace(derivatives=derivatives)
        return jax.grad(loss, argnums=(0, 1, 2, 3, 4))(how, image, box, rotation, experts.bias)

    frontal, half = jnp.zeros(3), np.array(face.image)
    half[:, :120] = 77.0
    outside = jnp.asarray(start) - jnp.array([90.0, 90, 0, 0])
    cases = {
        "frontal": (face.image, start, frontal),
        "a flat image": (np.full_like(face.image, 77.0), start, frontal),
        "flat patches": (half, start, frontal),
        "landmarks outside the image": (face.image, outside, frontal),
        "a view that hides a landmark": (face.image, start, frontal + 0.1),
    }
    for name, (image, box, rotation) in cases.items():
        found = slopes(jnp.asarray(image), jnp.asarray(box, jnp.float32), rotation)
        for leaf in jax.tree.leaves(found):
            assert np.isfinite(leaf).all(), name
        if name != "a flat image":
            assert np.abs(found[0].regularisation[-1]) > 0, name


def test_a_landmark_at_the_border_of_its_window_has_derivatives(face):
    """Where the fit may go is not limited by the window: no slope is cut off there."""
    with jax.enable_x64(True):
        model, params = as_dtype(face.model, float), as_dtype(default_params(iterations=2), float)
        params = params.replace(windows=(3, 0), kernel_width=jnp.array([3.0, 3.0]))
        pose = pose_from_box(model.pdm, jnp.asarray(face.box, float), jnp.zeros(3))

        @jax.jit
        def end(shift):
            start = dataclasses.replace(pose, translation=pose.translation + shift)
            result = fit_from(
                model, jnp.asarray(face.image, float), start, model.pdm.mean_shape(), params
            )
            return jnp.sum(result.landmarks), result.trace.peak_offset

        shift = jnp.array([9.0, -7.0])
        assert np.abs(np.asarray(end(shift)[1][0, 1, -1])).max() >= 1
        slope = jax.grad(lambda s: end(s)[0])(shift)
        for axis in range(2):
            step = jnp.zeros(2).at[axis].set(STEP)
            numeric = (end(shift + step)[0] - end(shift - step)[0]) / (2 * STEP)
            assert slope[axis] == pytest.approx(float(numeric), rel=1e-4)


def test_an_unknown_way_is_named():
    with pytest.raises(
        jclnf.errors.ParamsError, match=r"'backwards'.*unrolled, rematerialised, implicit"
    ):
        default_params(derivatives="backwards")
