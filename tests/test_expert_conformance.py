"""What a fit takes for granted of patch experts, checked for every kind of them.

A new kind is put into `KINDS`. All are small and random, with two scales, three views and the
windows 5 and 7; some landmarks are invisible in some views.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.expert_files import random_cen, random_svr, write_cen, write_svr
from support.synthetic import laplacian, random_pdm

import jclnf
from jclnf.experts import CCNF, PatchExperts
from jclnf.geometry import sample_areas
from jclnf.params import EXACT, OPENFACE, Arithmetic, as_dtype, to_device

WINDOWS = (7, 5)
SCALINGS = (0.5, 1.0)
N, SUPPORT = 5, 5


def ccnf() -> CCNF:
    rng = np.random.default_rng(1)
    shape = (2, 3, N)
    visible = np.ones(shape, bool)
    visible[:, 1, :2] = False
    return CCNF.create(
        scalings=SCALINGS,
        weights=rng.normal(size=(*shape, 2, SUPPORT, SUPPORT)),
        norm_weight=rng.uniform(1, 4, (*shape, 2)),
        bias=rng.normal(size=(*shape, 2)),
        alpha=rng.uniform(0.5, 2, (*shape, 2)),
        beta=rng.uniform(0.1, 0.5, (*shape, 1)),
        components={window: np.tile(laplacian(window), (2, 1, 1, 1)) for window in (7,)},
        centres=np.tile([[0, 0, 0], [0, -1, 0], [0, 1, 0]], (2, 1, 1)),
        visible=visible,
        confidence=rng.uniform(0.2, 0.8, shape),
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PatchExperts]:
    """Experts by kind, in single precision."""
    folder = tmp_path_factory.mktemp("experts")

    def make(kind: str) -> PatchExperts:
        if kind == "svr":
            files = [random_svr(k, landmarks=N, support=SUPPORT) for k in range(2)]
            return jclnf.load_openface(write_svr(folder / kind, *files)).experts
        if kind == "cen":
            files = [random_cen(k, landmarks=N, support=SUPPORT) for k in range(2)]
            return jclnf.load_openface(write_cen(folder / kind, *files)).experts
        return ccnf().prepare(WINDOWS) if kind == "prepared ccnf" else ccnf()

    return make


def respond(experts, areas, scale, view, window, arithmetic):
    return experts.responses(areas, scale, view, window, arithmetic=arithmetic)


respond_compiled = eqx.filter_jit(respond)
nearest_view = eqx.filter_jit(lambda experts, *at: experts.nearest_view(*at))
sample_areas = jax.jit(sample_areas, static_argnums=3, static_argnames="fixed_point")


class Case(NamedTuple):
    experts: PatchExperts
    arithmetic: Arithmetic
    kind: str

    def responses(self, areas, scale, view, window, experts=None, *, function=respond_compiled):
        experts = self.experts if experts is None else experts
        at = jnp.asarray(scale), jnp.asarray(view), window
        return function(experts, areas, *at, self.arithmetic)


KINDS = {
    "ccnf": EXACT,
    "prepared ccnf": EXACT,
    "svr": EXACT,
    "cen": EXACT,
    "sparse cen": OPENFACE,
}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, loaded: Callable[[str], PatchExperts]) -> Case:
    kind = request.param
    return Case(loaded(kind.removeprefix("sparse ")), KINDS[kind], kind)


def areas_of(window: int, *shape: int, seed: int = 0) -> jax.Array:
    """Smooth random areas, the last of them flat."""
    side = window + SUPPORT - 1
    rng = np.random.default_rng(seed)
    waves = rng.uniform(-1, 1, (*shape, N, 4, 1, 1)), rng.uniform(-1, 1, (*shape, N, 4, 1, 1))
    y, x = np.mgrid[:side, :side]
    areas = 128 + 25 * np.sin(waves[0] * x + waves[1] * y).sum(axis=-3)
    areas[..., -1, :, :] = 80
    return to_device(areas, jnp.float32)


def test_they_describe_themselves(case: Case) -> None:
    experts = case.experts
    s, v, n = experts.visible.shape
    assert (s, v, n) == (2, 3, N)
    assert experts.visible.dtype == bool
    assert experts.centres.shape == (s, v, 3)
    assert experts.confidence.shape == (s, v, n)
    assert len(experts.scalings) == s
    assert experts.support == SUPPORT
    for view in range(v):
        rotation = np.asarray(experts.centres)[1, view] + np.float32(0.1)
        assert nearest_view(experts, jnp.array(1), rotation) == view
    assert hash(jax.tree.structure(experts)) == hash(jax.tree.structure(experts))


def test_maps_are_finite_and_not_negative(case: Case) -> None:
    for scale, window in enumerate(WINDOWS):
        areas = areas_of(window)
        maps = [np.asarray(case.responses(areas, scale, view, window)) for view in range(2)]
        for found in maps:
            assert found.shape == (N, window, window)
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
            assert (found >= 0).all()
            # There is something to see in most maps; some random networks respond to nothing.
            assert np.sum(np.ptp(found, axis=(1, 2)) > 1e-4) >= 3
        assert np.abs(maps[0] - maps[1]).max() > 1e-3
    if case.kind != "prepared ccnf":
        first, second = (np.asarray(case.responses(areas_of(7), scale, 0, 7)) for scale in range(2))
        assert np.abs(first - second).max() > 1e-3


def test_landmarks_do_not_see_each_other(case: Case) -> None:
    areas = areas_of(7)
    changed = np.array(areas)
    changed[2] = changed[2, ::-1] * 0.5
    before, after = (
        np.asarray(case.responses(a, 0, 0, 7)) for a in (areas, jnp.asarray(changed, jnp.float32))
    )
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(before[others], after[others], rtol=1e-5, atol=1e-7)
    assert np.abs(before[2] - after[2]).max() > 1e-3


def test_jit_agrees_with_eager(case: Case) -> None:
    areas = areas_of(7)
    eager = case.responses(areas, 0, 2, 7, function=respond)
    np.testing.assert_allclose(case.responses(areas, 0, 2, 7), eager, rtol=1e-4, atol=1e-6)


def test_vmap_agrees_with_a_loop(case: Case) -> None:
    """Over areas, views and (where the windows allow it) scales at once, as a batch of faces is."""
    areas, views = np.asarray(areas_of(7, 3)), np.int32([2, 0, 1])
    scales = np.int32([0, 0, 0] if case.kind == "prepared ccnf" else [0, 1, 0])
    together = jax.jit(jax.vmap(lambda *at: case.responses(*at, 7)))(areas, scales, views)
    for found, *at in zip(np.asarray(together), areas, scales, views, strict=True):
        np.testing.assert_allclose(found, case.responses(*at, 7), rtol=1e-4, atol=1e-6)


def test_other_areas_scales_and_views_are_not_traced_again(case: Case) -> None:
    traced = []

    def counting(*args):
        traced.append(1)
        return respond(*args)

    function = eqx.filter_jit(counting)
    for seed, scale, view in ((0, 0, 0), (1, 0, 2), (2, 1, 1)):
        if not (case.kind == "prepared ccnf" and scale == 1):
            case.responses(areas_of(7, seed=seed), scale, view, 7, function=function)
    assert len(traced) == 1


def test_respond_samples_the_areas_itself(case: Case) -> None:
    rng = np.random.default_rng(3)
    image = to_device(rng.uniform(0, 255, (60, 50)), jnp.float32)
    landmarks = jnp.asarray(rng.uniform(10, 40, (N, 2)), jnp.float32)
    to_image, at = jnp.array([1.1, 0.2]), (jnp.array(0), jnp.array(0), 7)
    whole = eqx.filter_jit(
        lambda experts, *args: experts.respond(*args, arithmetic=case.arithmetic)
    )
    found = whole(case.experts, image, landmarks, to_image, *at)
    fixed = case.arithmetic.fixed_point_sampling
    areas = sample_areas(image, landmarks, to_image, 7 + SUPPORT - 1, fixed_point=fixed)
    expected = case.responses(areas, *at)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_preparing_changes_no_response(case: Case) -> None:
    prepared = case.experts.prepare(WINDOWS)
    for scale, window in enumerate(WINDOWS):
        found = case.responses(areas_of(window), scale, 1, window, prepared)
        expected = case.responses(areas_of(window), scale, 1, window)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_agree_with_central_differences(case: Case) -> None:
    """By the areas, and by everything in the experts that may be trained, in double precision."""
    step = 1e-6
    with jax.enable_x64(True):
        experts = as_dtype(case.experts, jnp.float64)
        floats, rest = eqx.partition(experts, eqx.is_inexact_array)
        rng = np.random.default_rng(5)
        # The flat area is a singular point: it has no slope, but must not spoil the gradient.
        areas = as_dtype(areas_of(7), jnp.float64)
        textured = np.arange(N) < N - 1
        weights = jnp.asarray(rng.uniform(0.5, 1.5, (N, 7, 7)))

        @jax.jit
        def loss(floats, areas):
            maps = case.responses(areas, 0, 2, 7, eqx.combine(floats, rest))
            return jnp.sum(jnp.where(textured[:, None, None], weights * maps, 0.0))

        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(floats, areas)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        for part in ("experts", "areas"):
            moves = [
                jax.tree.map(lambda x, on=on: on * rng.uniform(-1, 1, x.shape), tree)
                for tree, on in ((floats, part == "experts"), (areas, 50 * (part == "areas")))
            ]

            def moved(x, d, e):
                return to_device(np.asarray(x) + e * step * d)

            ends = [
                loss(*jax.tree.map(partial(moved, e=e), (floats, areas), (*moves,)))
                for e in (1, -1)
            ]
            products = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), found, (*moves,))
            slope = sum(jax.tree.leaves(products))
            assert abs(slope) > 1e-4
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-4), (jnp.bfloat16, 0.1)])
def test_other_precisions_are_near_single(case: Case, dtype: type, tolerance: float) -> None:
    expected = case.responses(areas_of(7), 0, 0, 7)
    with jax.enable_x64(True):
        experts = as_dtype(case.experts, dtype)
        found = case.responses(as_dtype(areas_of(7), dtype), 0, 0, 7, experts)
        assert found.dtype == dtype
        found = np.asarray(found, np.float32)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * expected.max()


def test_they_survive_being_saved(case: Case, tmp_path) -> None:
    params = jclnf.FitParams.openface(case.experts).replace(windows=WINDOWS)
    model = jclnf.Model(random_pdm(N), case.experts, params, "small")
    if case.kind == "prepared ccnf":
        with pytest.raises(jclnf.errors.ModelFileError, match="before it is prepared"):
            jclnf.save_model(model, tmp_path / "model.safetensors")
        return
    jclnf.save_model(model, tmp_path / "model.safetensors")
    again = jclnf.load_model(tmp_path / "model.safetensors")
    assert eqx.tree_equal(again, model)
