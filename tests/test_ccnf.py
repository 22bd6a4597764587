import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from support.synthetic import laplacian

from jclnf.errors import ModelFileError, ParamsError
from jclnf.experts import CCNF, to_blocks
from jclnf.experts._neural_field import (
    LANES,
    _patch_products,
    _symmetric_functions,
    apart,
    correlate,
    covariances,
    mirror_basis,
    patch_scale,
    side_by_side,
    smooth,
)
from jclnf.geometry import fence, inverses
from jclnf.params import as_dtype

WINDOWS = (7, 5)
SHAPE = (2, 2, 3)  # scales, views, landmarks


@eqx.filter_jit
def respond(experts, areas, scale, view, window):
    """In one program: operations on their own would each be compiled."""
    return experts.responses(jnp.asarray(areas), scale, view, window)


def symmetric(rng, window):
    """A random component with all symmetries of the square."""
    matrix = rng.standard_normal((window,) * 4)
    matrix = matrix + matrix[::-1, :, ::-1]
    matrix = matrix + matrix[:, ::-1, :, ::-1]
    matrix = (matrix + matrix.transpose(1, 0, 3, 2)).reshape(window**2, window**2)
    return (matrix @ matrix.T) / (16 * window**2)


@pytest.fixture
def arrays(rng):
    """Parameters of random experts."""
    random = symmetric(rng, 7)
    alpha = rng.uniform(0.5, 2.0, (*SHAPE, 4))
    alpha[..., 3] = 5e-5  # under the threshold: not in the response, but in the covariance
    alpha[1, 1, 2] = 0  # no expert at all
    return {
        "scalings": (0.25, 0.5),
        "weights": rng.standard_normal((*SHAPE, 4, 11, 11)),
        "norm_weight": rng.uniform(1, 3, (*SHAPE, 4)),
        "bias": rng.standard_normal((*SHAPE, 4)),
        "alpha": alpha,
        "beta": rng.uniform(0.1, 1.0, (*SHAPE, 2)),
        "components": {7: np.stack([np.stack([laplacian(7)[0, 0], random])] * 2)},
        "centres": rng.standard_normal((2, 2, 3)),
        "visible": np.ones(SHAPE, bool),
        "confidence": rng.uniform(0, 1, SHAPE),
    }


def slow_response(arrays, at, area, window):
    """The definition, one patch after the other, in double precision, with the full Sigma."""
    alpha, beta = arrays["alpha"][at], arrays["beta"][at]
    field = np.zeros((window, window))
    for y in range(window):
        for x in range(window):
            patch = area[y : y + 11, x : x + 11].astype(float)
            patch = patch - patch.mean()
            norm = np.linalg.norm(patch)
            patch = patch / (norm if norm > 1e-9 else 1)
            for q in np.flatnonzero(alpha > 1e-4):
                drive = arrays["norm_weight"][at][q] * np.sum(patch * arrays["weights"][at][q])
                field[y, x] += 2 * alpha[q] / (1 + np.exp(-drive - arrays["bias"][at][q]))
    precision = 2 * alpha.sum() * np.eye(window**2)
    if window in arrays["components"]:
        precision += 2 * np.einsum("b,bij->ij", beta, arrays["components"][window][at[0]])
    response = (np.linalg.inv(precision) @ field.ravel()).reshape(window, window)
    return response - min(response.min(), 0)


@pytest.mark.parametrize("prepared", [False, True])
def test_responses_match_the_definition(arrays, rng, prepared):
    experts = CCNF.create(**arrays)
    used = experts.prepare(WINDOWS) if prepared else experts
    for scale, window in enumerate(WINDOWS):
        areas = rng.uniform(0, 255, (3, window + 10, window + 10)).astype(np.float32)
        areas[1, :, :9] = 200.0  # an edge, with flat patches beside it
        for view in range(2):
            maps = respond(used, areas, jnp.array(scale), jnp.array(view), window)
            for i in range(3):
                if arrays["alpha"][scale, view, i].sum() == 0:
                    np.testing.assert_array_equal(maps[i], 0)
                    continue
                expected = slow_response(arrays, (scale, view, i), areas[i], window)
                np.testing.assert_allclose(maps[i], expected, atol=2e-4 * expected.max())


def test_landmarks_of_several_blocks_are_each_their_own(arrays, rng):
    """More than lie side by side; each as if it were alone."""
    count = LANES + 3
    chosen = rng.integers(0, 3, count)
    many = {
        name: array[:, :, chosen]
        for name, array in arrays.items()
        if name not in ("scalings", "components", "centres")
    }
    areas = rng.uniform(0, 255, (count, 17, 17)).astype(np.float32)
    at = jnp.array(0), jnp.array(1), 7
    found = respond(CCNF.create(**{**arrays, **many}), areas, *at)
    few = CCNF.create(**arrays)
    alone = jax.vmap(lambda area: respond(few, jnp.stack([area] * 3), *at))(jnp.asarray(areas))
    expected = np.asarray(alone)[np.arange(count), chosen]
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    np.testing.assert_array_equal(apart(side_by_side(jnp.asarray(areas)))[:count], areas)


def test_what_is_not_finite_stays_with_its_landmark(arrays, rng):
    experts = CCNF.create(**arrays)
    areas = rng.uniform(0, 255, (3, 17, 17)).astype(np.float32)
    at = jnp.array(0), jnp.array(1), 7
    expected = respond(experts, areas, *at)
    for spoilt in (np.nan, np.inf):
        areas[1, 4, 5] = spoilt
        found = respond(experts, areas, *at)
        assert np.isnan(found[1]).all()
        np.testing.assert_array_equal(found[::2], expected[::2])


@pytest.mark.parametrize(("support", "window"), [(5, 5), (4, 7)])
def test_derivatives_of_correlations_are_those_of_products_of_matrices(rng, support, window):
    def random(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    side = support + window - 1
    shapes = (side, side), (3, support, support), (3, window, window)
    areas, weights, slope = (random(2, *shape, LANES) for shape in shapes)
    for function in (lambda f: f, jax.vmap):
        given = [jnp.stack([a, 2 * a]) if function is jax.vmap else a for a in (areas, weights)]
        g = jnp.stack([slope, -slope]) if function is jax.vmap else slope
        _, ours = jax.vjp(function(correlate), *given)
        _, theirs = jax.vjp(function(_patch_products), *given)
        for a, b in zip(ours(g), theirs(g), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    tangents = random(*areas.shape), random(*weights.shape)
    for ours, theirs in zip(
        jax.jvp(correlate, (areas, weights), tangents),
        jax.jvp(_patch_products, (areas, weights), tangents),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_derivatives_of_a_patchs_norm(rng):
    with jax.enable_x64(True):
        areas = jnp.asarray(rng.uniform(0, 255, (1, 8, 8, 2)))
        scaled = jax.jit(lambda areas: 100 * patch_scale(areas, 4))
        jax.test_util.check_grads(scaled, (areas,), 2, rtol=1e-4, eps=1e-3)


def test_a_flat_area_gives_what_the_biases_alone_give(arrays):
    experts = CCNF.create(**arrays)
    for level in (0.0, 77.0, 255.0):
        areas = jnp.full((3, 15, 15), level)
        maps = respond(experts, areas, jnp.array(1), jnp.array(0), 5)
        expected = slow_response(arrays, (1, 0, 0), np.zeros((15, 15)), 5)
        np.testing.assert_allclose(maps[0], expected, rtol=1e-5)


def test_negative_responses_are_lifted_to_zero(arrays, rng):
    # Neurons that fire rarely, in a field whose pixels inhibit each other.
    arrays |= {"norm_weight": arrays["norm_weight"] * 20, "bias": arrays["bias"] - 30}
    arrays["beta"] = arrays["beta"] * [0, 20]
    areas = rng.uniform(0, 255, (3, 17, 17)).astype(np.float32)
    maps = respond(CCNF.create(**arrays), areas, jnp.array(0), jnp.array(0), 7)
    expected = np.stack([slow_response(arrays, (0, 0, i), areas[i], 7) for i in range(3)])
    lifted = expected.min(axis=(1, 2)) == 0
    assert lifted.any()
    np.testing.assert_allclose(maps, expected, atol=2e-3 * expected.max())


def test_gradients_reach_every_parameter(arrays, rng):
    areas = rng.uniform(0, 255, (3, 17, 17))

    def total(experts, areas):
        return jnp.sum(jnp.sin(respond(experts, areas, jnp.array(0), jnp.array(1), 7)))

    with jax.enable_x64(True):
        experts = as_dtype(CCNF.create(**arrays), float)
        total = jax.jit(total)
        gradients = jax.jit(jax.grad(total, allow_int=True))(experts, jnp.asarray(areas))
        for name in ("weights", "norm_weight", "bias", "alpha", "beta", "components"):
            leaf = getattr(gradients, name)
            leaf, values = (
                (leaf[7], experts.components[7])
                if name == "components"
                else (
                    leaf,
                    getattr(experts, name),
                )
            )
            leaf, values = np.asarray(leaf), np.asarray(values)
            pick = np.unravel_index(np.argmax(np.abs(leaf)), leaf.shape)
            ends = []
            for step in (1e-6, -1e-6):
                changed = values.copy()
                changed[pick] += step
                moved = jnp.asarray(changed)
                if name == "components":
                    moved = {7: moved}
                fields = {f.name: getattr(experts, f.name) for f in dataclasses.fields(experts)}
                ends.append(total(CCNF(**{**fields, name: moved}), jnp.asarray(areas)))
            numeric = (ends[0] - ends[1]) / 2e-6
            assert abs(numeric) > 1e-6, name
            np.testing.assert_allclose(leaf[pick], numeric, rtol=1e-5, err_msg=name)


def test_flat_patches_have_finite_gradients(arrays):
    experts = CCNF.create(**arrays)
    gradient = jax.jit(
        jax.grad(lambda areas: respond(experts, areas, jnp.array(0), jnp.array(0), 7).sum())
    )(jnp.full((3, 17, 17), 9.0))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("window", [4, 5, 7, 11])
def test_mirror_basis_is_orthonormal_and_of_pure_parity(window):
    basis = mirror_basis(window).reshape(window, -1)
    nonzero = basis[:, np.abs(basis).sum(0) > 0]
    np.testing.assert_allclose(nonzero.T @ nonzero, np.eye(window), atol=1e-12)
    parity = mirror_basis(window)
    np.testing.assert_allclose(parity[::-1, 0], parity[:, 0])
    np.testing.assert_allclose(parity[::-1, 1], -parity[:, 1])


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 11, 15])
def test_smoothing_is_by_the_inverse_of_the_full_matrix(rng, window):
    components = np.stack([symmetric(rng, window) for _ in range(2)])
    alpha, beta = rng.uniform(0.1, 1, (2, 3, 4)), rng.uniform(0.1, 1, (2, 3, 2))
    field = rng.standard_normal((3, window, window))
    with jax.enable_x64(True):
        blocks = jnp.asarray(to_blocks(components[None], window)[0], float)

        @jax.jit
        def smoothed(at):
            fields = covariances(jnp.asarray(alpha), jnp.asarray(beta), blocks, window)
            side = side_by_side(jnp.asarray(field))
            return apart(smooth(fields, at, side))[:3]

        for at in range(2):
            precision = 2 * np.einsum("nb,bij->nij", beta[at], components)
            precision += 2 * alpha[at].sum(-1)[:, None, None] * np.eye(window**2)
            expected = np.linalg.solve(precision, field.reshape(3, -1, 1)).reshape(field.shape)
            # The components are stored in single precision.
            np.testing.assert_allclose(smoothed(at), expected, atol=1e-6 * np.abs(expected).max())


def test_a_field_without_components_is_diagonal(arrays, rng):
    none = {7: np.zeros((2, 0, 49, 49), np.float32)}
    without = {"components": none, "beta": arrays["beta"][..., :0]}
    experts = CCNF.create(**arrays | without)
    area = rng.uniform(0, 255, (3, 17, 17)).astype(np.float32)
    given = jnp.asarray(area), jnp.int32(0), jnp.int32(1), 7
    expected = slow_response(arrays | {"components": {}}, (0, 1, 2), area[2], 7)
    for each in (experts, experts.prepare(WINDOWS)):
        np.testing.assert_allclose(respond(each, *given)[2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_derivatives_of_smoothing(rng, window):
    with jax.enable_x64(True):
        components = jnp.asarray(to_blocks(symmetric(rng, window)[None, None], window)[0], float)
        alpha, beta = jnp.asarray(rng.uniform(1, 2, (2, 2, 2))), jnp.ones((2, 2, 1))
        field = jnp.asarray(rng.standard_normal((2, window, window)))

        def smoothed(alpha, beta, components, field):
            fields = covariances(alpha, beta, components, window)
            side = side_by_side(field)
            return jnp.stack([apart(smooth(fields, at, side))[:2] for at in range(2)])

        given = alpha, beta, components, field
        jax.test_util.check_grads(jax.jit(smoothed), given, 2, rtol=1e-5, atol=1e-6)
        several = jax.tree.map(lambda array: jnp.stack([array, 1.5 * array]), given)
        together = jax.jit(jax.vmap(smoothed))(*several)
        for k in range(2):
            alone = jax.jit(smoothed)(*(array[k] for array in several))
            np.testing.assert_allclose(together[k], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3), (1, 1, 4)])
def test_a_fence_changes_nothing(rng, shape):
    with jax.enable_x64(True):
        array = jnp.asarray(rng.standard_normal(shape))
        np.testing.assert_array_equal(jax.jit(fence)(array), array)
        jax.test_util.check_grads(jax.jit(lambda x: jnp.sin(fence(x) * x)), (array,), 2)


def test_nothing_is_fused_across_a_fence():
    def in_one_loop(between, transformed=lambda function: function):
        function = jax.jit(transformed(lambda x: jnp.cos(between(jnp.sin(x)))))
        text = function.lower(jnp.ones((8, 16))).compile().as_text()
        loops = [part for part in text.split("\n\n") if "ENTRY" not in part]
        return any(" sine(" in loop and " cosine(" in loop for loop in loops)

    assert in_one_loop(lambda x: x)
    assert not in_one_loop(fence)
    assert not in_one_loop(fence, jax.vmap)


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_symmetric_functions_are_orthonormal_and_of_few_pixels(window):
    functions = _symmetric_functions(window)
    assert np.count_nonzero(functions, axis=0).max() <= 8
    np.testing.assert_allclose(functions.T @ functions, np.eye(window**2), atol=1e-12)


def test_derivatives_of_many_faces_keep_little(arrays, rng):
    # The prepared arrays, what is added up of their slopes, and little beside: no second copy.
    many = {
        name: np.repeat(np.repeat(array, 4, axis=1), 1 if name == "centres" else 8, axis=2)
        for name, array in arrays.items()
        if name not in ("scalings", "components")
    }
    floats, rest = eqx.partition(CCNF.create(**arrays | many), eqx.is_inexact_array)

    def ready(floats):
        return eqx.combine(floats, rest).prepare(WINDOWS)

    def loss(floats, faces):
        experts = ready(floats)

        @jax.checkpoint
        def add(total, face):
            view, *areas = face
            scales = zip(range(2), areas, WINDOWS, strict=True)
            maps = [experts.responses(a, jnp.int32(k), view, window) for k, a, window in scales]
            return total + sum(jnp.sum(each**2) for each in maps), None

        return jax.lax.scan(add, jnp.float32(0), faces)[0]

    sides = [window + 10 for window in WINDOWS]
    areas = [rng.uniform(0, 255, (4, 24, side, side)).astype(np.float32) for side in sides]
    faces = (jnp.arange(4, dtype=jnp.int32), *areas)
    compiled = jax.jit(jax.grad(loss)).lower(floats, faces).compile()
    leaves = jax.tree.leaves(jax.eval_shape(ready, floats))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * size


def test_training_keeps_components_symmetric(arrays, rng):
    experts = CCNF.create(**arrays)
    areas = rng.uniform(0, 255, (3, 17, 17)).astype(np.float32)

    @jax.jit
    def loss(components):
        changed = dataclasses.replace(experts, components=components)
        return jnp.sum(jnp.sin(respond(changed, areas, jnp.array(0), jnp.array(1), 7)))

    gradient = jax.grad(loss)(experts.components)
    assert np.abs(gradient[7][0]).max() > 0.1
    dataclasses.replace(experts, components=gradient)  # is checked


@pytest.mark.parametrize(
    ("pixels", "broken"),
    [
        (((0, 3), (0, 5)), "transposition"),
        (((0, 0), (0, 0)), "mirroring in y"),
        (((3, 0), (3, 0)), "mirroring in x"),
    ],
)
def test_components_without_mirror_symmetry_are_refused(arrays, pixels, broken):
    arrays["components"][7] = arrays["components"][7].copy()
    arrays["components"][7].reshape(2, 2, *[7] * 4)[(0, 0, *pixels[0], *pixels[1])] += 1
    with pytest.raises(ModelFileError, match=f"window 7 are not symmetric under {broken}"):
        CCNF.create(**arrays)


def test_components_that_change_when_x_and_y_are_exchanged_are_refused(arrays):
    along_x = np.kron(np.eye(7), np.diag(np.full(6, -1.0), 1) + np.diag(np.full(6, -1.0), -1))
    components = {7: np.tile(along_x + 2 * np.eye(49), (2, 2, 1, 1))}
    refusal = "not symmetric under exchanging x and y"
    with pytest.raises(ModelFileError, match=f"the components of window 7 are {refusal}"):
        CCNF.create(**{**arrays, "components": components})
    experts = CCNF.create(**arrays)
    stored = np.asarray(experts.components[7])
    for place in ((0, 1, 1), (1, 0, 0), (2, 2, 2)):  # in each of the blocks that are exchanged
        changed = stored.copy()
        changed[(0, 1, *place)] += 0.01 * np.abs(stored).max()
        with pytest.raises(ModelFileError, match=rf"components\[7\] is {refusal}"):
            dataclasses.replace(experts, components={7: jnp.asarray(changed)})


@pytest.mark.usefixtures("as_users_run_it")
def test_shapes_that_do_not_go_together_are_refused(arrays):
    with pytest.raises(ModelFileError, match="beta is float32 of shape"):
        CCNF.create(**{**arrays, "beta": arrays["beta"][:, :, :2]})
    with pytest.raises(ModelFileError, match="scalings has 1 numbers for 2 scales"):
        CCNF.create(**{**arrays, "scalings": (0.25,)})


def test_prepared_experts_refuse_other_windows(arrays):
    prepared = CCNF.create(**arrays).prepare(WINDOWS)
    assert prepared.prepare(WINDOWS) is prepared
    assert prepared.prepare((0, 5)) is prepared
    with pytest.raises(ParamsError, match="prepared for the windows"):
        prepared.prepare((7, 7))
    with pytest.raises(ParamsError, match="3 windows for 2 scales"):
        CCNF.create(**arrays).prepare((7, 5, 5))


@pytest.mark.parametrize("side", [1, 6, 25])
def test_inverses_of_many_matrices(rng, side):
    """In blocks: one, a whole one, several of which the last is filled up."""
    factors = rng.standard_normal((3, 2, side, 2 * side))
    diagonals = np.geomspace(1, 1e3, 3)[:, None, None, None] * np.eye(side)
    matrices = factors @ factors.swapaxes(-1, -2) + diagonals
    found = inverses(jnp.asarray(matrices, jnp.float32))
    expected = np.linalg.inv(matrices)
    largest = np.abs(expected).max(axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(found / largest, expected / largest, atol=1e-5)
