"""CEN experts: their definition, OpenFace's files of them, and OpenFace's recorded responses."""

import shutil
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.expert_files import CENFile, random_cen, write_cen
from support.recordings import check_fits, recording, scales

import jclnf
from jclnf import load_openface
from jclnf.experts import CEN
from jclnf.experts._cen import sparse_grid
from jclnf.params import EXACT, OPENFACE

SUPPORT, WINDOW = 5, 7


@eqx.filter_jit
def respond(experts, areas, scale, view, window, *, sparse=False):
    """In one program: operations on their own would each be compiled."""
    arithmetic = OPENFACE if sparse else EXACT
    return experts.responses(jnp.asarray(areas), scale, view, window, arithmetic=arithmetic)


def apply(layers: list, area: np.ndarray, y: int, x: int) -> float:
    """An expert as its file describes it, for the patch at one position."""
    patch = area[y : y + SUPPORT, x : x + SUPPORT].astype(float)
    columns = patch.T.ravel()
    columns = columns - columns.mean()
    v = np.concatenate([[1.0], columns / np.linalg.norm(columns)])
    for activation, bias, weights in layers:
        v = weights @ v + bias
        v = {0: 1 / (1 + np.exp(-v)), 2: np.maximum(v, 0)}.get(activation, v)
    return v.item()


def slow_response(cen: CENFile, area: np.ndarray, view: int, i: int, *, sparse: bool) -> np.ndarray:
    """A response map position by position, in double precision."""
    window = len(area) - SUPPORT + 1
    layers, mirrored = cen.networks.get((view, i)), False
    if layers is None:
        mirrored = True
        at = cen.mirror_views[view] if view else 0, cen.mirror_landmarks[i]
        layers, area = cen.networks[at], area[:, ::-1]
    response = np.full((window, window), np.nan)
    count = 0
    for x in range(window):
        for y in range(window):
            if count % 2 or not sparse:
                response[y, x] = apply(layers, area, y, x)
            count += 1
    computed = np.pad(response, 1, constant_values=np.nan)
    for y, x in np.argwhere(np.isnan(response)):
        around = [computed[y + 1 + dy, x + 1 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        response[y, x] = np.nanmean(around)
    return response[:, ::-1] if mirrored else response


@pytest.mark.parametrize(("sparse", "window"), [(False, 7), (True, 7), (True, 4)])
def test_responses_match_the_definition(
    tmp_path: Path, rng: np.random.Generator, sparse: bool, window: int
) -> None:
    cen = random_cen(landmarks=5, support=SUPPORT)
    experts = load_openface(write_cen(tmp_path, cen)).experts
    side = window + SUPPORT - 1
    areas = rng.uniform(0, 255, (5, side, side)).astype(np.float32)
    for view in range(3):
        found = respond(experts, areas, jnp.array(0), jnp.array(view), window, sparse=sparse)
        for i in np.flatnonzero(cen.visible[view]):
            expected = slow_response(cen, areas[i], view, i, sparse=sparse)
            np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_the_sparse_grid_is_a_checkerboard_with_means_between() -> None:
    positions, spread = sparse_grid(3)
    np.testing.assert_array_equal(positions, [1, 3, 5, 7])
    values = np.array([1.0, 2.0, 4.0, 8.0])  # above, left, right, below
    expected = [[1.5, 1, 2.5], [2, 3.75, 4], [5, 8, 6]]
    np.testing.assert_allclose((values @ spread).reshape(3, 3), expected)
    for window in (2, 3, 4, 5, 11):
        positions, spread = sparse_grid(window)
        assert len(positions) == window**2 // 2
        if window % 2:
            np.testing.assert_array_equal(positions, np.arange(window**2)[1::2])
        np.testing.assert_allclose(spread.sum(axis=0), 1)
        np.testing.assert_array_equal(spread[:, positions], np.eye(len(positions)))
    positions, spread = sparse_grid(4)
    # With an even side every other row is evaluated, and the one above and below count.
    np.testing.assert_array_equal(np.unique(positions // 4), [1, 3])


def test_sparse_evaluation_keeps_what_it_evaluates(rng: np.random.Generator) -> None:
    experts = create(random_cen(landmarks=4, support=SUPPORT))
    side = WINDOW + SUPPORT - 1
    areas = jnp.asarray(rng.uniform(0, 255, (4, side, side)), jnp.float32)
    at = jnp.array(0), jnp.array(1), WINDOW
    dense = np.asarray(respond(experts, areas, *at)).reshape(4, -1)
    sparse = respond(experts, areas, *at, sparse=True).reshape(4, -1)
    positions, _ = sparse_grid(WINDOW)
    np.testing.assert_allclose(sparse[:, positions], dense[:, positions], rtol=1e-5)
    assert np.abs(sparse - dense).max() > 0.01


def test_accelerators_get_one_product_for_all_landmarks(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = create(random_cen(landmarks=6, support=SUPPORT))
    side = WINDOW + SUPPORT - 1
    areas = jnp.asarray(rng.uniform(0, 255, (6, side, side)), jnp.float32)
    at = jnp.array(0), jnp.array(2)
    in_groups = respond(experts, areas, *at, WINDOW)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    together = jax.jit(lambda *at: experts.responses(areas, *at, WINDOW))(*at)
    np.testing.assert_allclose(together, in_groups, rtol=1e-5)
    program = str(jax.make_jaxpr(lambda *a: experts.responses(*a, WINDOW))(areas, *at))
    assert "scan" not in program
    assert program.count("dot_general") == 3


def test_a_mirrored_expert_mirrors(rng: np.random.Generator) -> None:
    experts = create(random_cen(landmarks=4, support=SUPPORT))
    side = WINDOW + SUPPORT - 1
    areas = jnp.asarray(rng.uniform(0, 255, (4, side, side)), jnp.float32)
    left = respond(experts, areas, jnp.array(0), jnp.array(1), WINDOW)
    right = respond(experts, areas[::-1, :, ::-1], jnp.array(0), jnp.array(2), WINDOW)
    np.testing.assert_allclose(left[:2], right[::-1, :, ::-1][:2], rtol=1e-5)


def test_a_flat_area_gives_what_the_biases_alone_give() -> None:
    cen = random_cen(landmarks=4, support=SUPPORT, hidden=())
    side = WINDOW + SUPPORT - 1
    flat = jnp.full((4, side, side), 117.3)
    found = respond(create(cen), flat, jnp.array(0), jnp.array(0), WINDOW)
    _, bias, weights = cen.networks[0, 1][0]
    expected = 1 / (1 + np.exp(-bias - weights[:, 0]))
    np.testing.assert_allclose(found[1], np.full((WINDOW, WINDOW), expected), rtol=1e-5)


def create(*files: CENFile) -> CEN:
    """The experts of files, by way of their reader."""
    with tempfile.TemporaryDirectory() as folder:
        return load_openface(write_cen(Path(folder), *files)).experts


def test_scales_may_differ_in_their_networks(rng: np.random.Generator) -> None:
    files = [
        random_cen(k, support=SUPPORT, hidden=hidden, scaling=0.25 * (k + 1))
        for k, hidden in enumerate([(5, 3), (4,), (5, 3)])
    ]
    together = create(*files)
    assert together.architectures == (0, 1, 0)
    side = WINDOW + SUPPORT - 1
    areas = jnp.asarray(rng.uniform(0, 255, (6, side, side)), jnp.float32)
    for k, file in enumerate(files):
        alone = respond(create(file), areas, jnp.array(0), jnp.array(0), WINDOW)
        found = respond(together, areas, jnp.array(k), jnp.array(0), WINDOW)
        np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_activations_other_than_sigmoid_and_relu_are_none(rng: np.random.Generator) -> None:
    cen = random_cen(landmarks=4, support=SUPPORT, hidden=(3, 3))
    for layers in cen.networks.values():
        layers[0], layers[1] = (1, *layers[0][1:]), (3, *layers[1][1:])
    experts = create(cen)
    assert experts.activations == ("none none sigmoid",)
    side = WINDOW + SUPPORT - 1
    areas = rng.uniform(0, 255, (4, side, side)).astype(np.float32)
    found = respond(experts, areas, jnp.array(0), jnp.array(0), WINDOW)
    expected = slow_response(cen, areas[1], 0, 1, sparse=False)
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


@pytest.fixture(scope="module")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> jclnf.Model:
    """OpenFace's model with experts of random weights."""
    folder = tmp_path_factory.mktemp("ceclm")
    (folder / "patch_experts").mkdir()
    (folder / "pdms").symlink_to(shared / "openface" / "model" / "pdms")
    for name in ("main_ceclm_general.txt", "cen_general.txt", "early_term_cen_of.txt"):
        shutil.copyfile(shared / "openface" / "model" / name, folder / name)
    for file in (shared / "openface" / "synthetic_cen").iterdir():
        (folder / "patch_experts" / file.name).symlink_to(file)
    return load_openface(folder / "main_ceclm_general.txt")


def test_the_rule_for_early_termination_comes_with_it(model: jclnf.Model) -> None:
    np.testing.assert_allclose(
        model.early_termination.cutoff, [-0.23, -0.2, -0.14, 0.26, 0.26, -0.14, -0.2]
    )


def test_responses_are_openfaces(shared: Path, model: jclnf.Model) -> None:
    views = set()
    for name in ("stages_ceclm_synthetic", "stages_ceclm_synthetic_rotated"):
        for scale in scales(recording(shared / "openface", name)):
            visible = np.asarray(model.experts.visible[scale.index, scale.view])
            areas = scale.maps("aoi")
            # No areas are recorded for landmarks of the frontal view that use a mirrored expert.
            seen = visible & (np.abs(areas).max((1, 2)) > 0)
            found = respond(model.experts, areas, *scale.position, sparse=True)
            assert np.abs(found - scale.maps("responses"))[seen].max() <= 5e-5
            views.add(scale.view)
    assert views == set(range(7))


def test_fits_are_openfaces(shared: Path, model: jclnf.Model) -> None:
    angles = ("0,-0.4,0", "0,0.85,-0.1", "0,-1.25,0", "0,1.25,0")
    starts = [(f"rotation({a})/{name}", name) for a in angles for name in ("000", "050")]
    name = "stages_ceclm_synthetic_rotated"
    check_fits(shared / "openface", model, name, starts, median=0.02, worst=0.1)
    assert jax.tree.leaves(model.experts.weights)[0].shape[0] == 4 * 210
