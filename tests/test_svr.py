"""SVR experts: their definition, OpenFace's files of them, and OpenFace's recorded responses."""

import random
import re
from pathlib import Path

import cv2
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.expert_files import SVRFile, random_svr, svr_text, write_svr
from support.openface_files import little_memory
from support.recordings import check_fits, recording, scales

import jclnf
from jclnf import load_openface
from jclnf.errors import ModelFileError
from jclnf.experts import SVR
from jclnf.experts._svr import gradient_energy, svr_responses
from jclnf.openface._svr import read_svr_scale

TINY = random_svr(landmarks=2, support=3)
WINDOW = 7


@eqx.filter_jit
def respond(experts: SVR, areas: jnp.ndarray, scale: int, view: int) -> jnp.ndarray:
    """In one program: operations on their own would each be compiled."""
    return experts.responses(areas, jnp.asarray(scale), jnp.asarray(view), WINDOW)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def correlations(area: np.ndarray, template: np.ndarray) -> np.ndarray:
    method = cv2.TM_CCOEFF_NORMED
    return cv2.matchTemplate(area.astype(np.float32), template.astype(np.float32), method)


@pytest.fixture
def areas(rng: np.random.Generator) -> jnp.ndarray:
    noise = rng.uniform(0, 255, (3, WINDOW + 10, WINDOW + 10))
    smooth = [cv2.GaussianBlur(area, (0, 0), 1.0) for area in noise]
    return jnp.asarray(np.stack(smooth), jnp.float32)


def test_responses_match_opencvs_correlation(areas: jnp.ndarray, rng: np.random.Generator) -> None:
    weights = rng.normal(size=(3, 3, 11, 11)).astype(np.float32)
    slope, bias = rng.uniform(1, 10, (3, 3)), rng.uniform(-4, 0, (3, 3))
    modalities = ("gradient", "raw", "gradient")
    found = jax.jit(svr_responses, static_argnums=(4, 5))(
        areas,
        jnp.asarray(weights),
        jnp.asarray(slope, jnp.float32),
        jnp.asarray(bias, jnp.float32),
        modalities,
        WINDOW,
    )
    for i, area in enumerate(np.asarray(areas)):
        gy, gx = np.gradient(area.astype(float))
        energy = np.zeros_like(gx)
        energy[1:-1, 1:-1] = (gx**2 + gy**2)[1:-1, 1:-1]
        expected = np.ones((WINDOW, WINDOW))
        for e, modality in enumerate(modalities):
            seen = energy if modality == "gradient" else area
            expected *= sigmoid(slope[i, e] * correlations(seen, weights[i, e]) + bias[i, e])
        np.testing.assert_allclose(found[i], expected, rtol=2e-4)


def test_brightness_contrast_and_the_templates_scale_do_not_matter(areas: jnp.ndarray) -> None:
    experts = SVR.create(**arrays_of(random_svr(landmarks=3)))
    at = np.array(0), np.array(0)
    plain = respond(experts, areas, *at)
    np.testing.assert_allclose(respond(experts, 40 + 0.4 * areas, *at), plain, rtol=1e-3)
    changed = eqx.tree_at(lambda e: e.weights, experts, 3 * experts.weights + 0.5)
    np.testing.assert_allclose(respond(changed, areas, *at), plain, rtol=1e-3)


def test_a_flat_area_gives_what_the_biases_alone_give() -> None:
    experts = SVR.create(**arrays_of(random_svr(landmarks=3)))
    flat = jnp.full((3, WINDOW + 10, WINDOW + 10), 117.3)
    found = respond(experts, flat, np.array(0), np.array(1))
    expected = sigmoid(np.asarray(experts.bias[0, 1])).prod(axis=1)
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], found.shape), 1e-5)


def test_the_gradient_is_zero_along_the_border(areas: jnp.ndarray) -> None:
    energy = np.array(jax.jit(gradient_energy)(areas))
    assert (energy[:, 1:-1, 1:-1] > 0).all()
    energy[:, 1:-1, 1:-1] = 0
    assert (energy == 0).all()


def arrays_of(*files: SVRFile) -> dict[str, object]:
    """The arguments of `SVR.create` for files whose patches have all experts."""
    names = ("slope", "bias", "weights", "visible")
    return {
        "scalings": tuple(file.scaling for file in files),
        "modalities": tuple(("raw", "gradient")[code] for code in files[0].modalities),
        "centres": np.radians(np.stack([file.centres for file in files])),
        "confidence": np.stack([file.confidence.sum(-1) for file in files]),
        **{name: np.stack([getattr(file, name) for file in files]) for name in names},
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files = random_svr(1, landmarks=4, support=5), random_svr(2, landmarks=4, support=5, scaling=1)
    model = load_openface(write_svr(tmp_path, *files))
    assert isinstance(model.experts, SVR)
    assert model.experts.modalities == ("raw", "gradient")
    assert model.scalings == (0.25, 1.0)
    for name, expected in arrays_of(*files).items():
        if isinstance(expected, np.ndarray):
            np.testing.assert_allclose(getattr(model.experts, name), expected, 1e-6, err_msg=name)
    assert model.defaults.windows == (11, 9)
    np.testing.assert_allclose(model.defaults.regularisation, [25, 0.001])


def test_patches_may_have_other_experts(tmp_path: Path, rng: np.random.Generator) -> None:
    """Two of one modality, none of another, or none at all where the landmark is invisible."""
    first = random_svr(1, landmarks=4, support=3)
    first.count[0, 1], first.count[1, 0] = 1, 0
    second = random_svr(2, landmarks=4, support=3, modalities=(1, 1))
    experts = load_openface(write_svr(tmp_path, first, second)).experts
    assert experts.modalities == ("raw", "gradient", "gradient")
    areas = jnp.asarray(rng.uniform(0, 255, (4, 9, 9)), jnp.float32)
    raw = SVR.create(**arrays_of(first))
    found = respond(experts, areas, np.array(0), np.array(0))
    expected = np.asarray(respond(raw, areas, np.array(0), np.array(0)))
    found = np.asarray(found)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=1e-5)
    slope, bias = np.array(raw.slope), np.array(raw.bias)
    slope[..., 1], bias[..., 1] = 0, 40
    changed = eqx.tree_at(lambda e: (e.slope, e.bias), raw, (jnp.asarray(slope), jnp.asarray(bias)))
    alone = np.asarray(respond(changed, areas, np.array(0), np.array(0)))
    np.testing.assert_allclose(found[1], alone[1], rtol=1e-5)
    twice = SVR.create(**arrays_of(second))
    found = respond(experts, areas, np.array(1), np.array(2))
    expected = respond(twice, areas, np.array(0), np.array(2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(experts.confidence)[0, 0, 1], first.confidence[0, 1, 0], rtol=1e-6
    )


def read(folder: Path, text: str | bytes, landmarks: int = 2) -> object:
    path = folder / "svr.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_svr_scale(path, landmarks)


def test_files_cut_off_anywhere(tmp_path: Path) -> None:
    tokens = re.sub("#.*", "", svr_text(TINY)).split()
    read(tmp_path, " ".join(tokens))
    for count in range(1, len(tokens), 3):
        with pytest.raises(ModelFileError, match=r"svr\.txt: line 1: "):
            read(tmp_path, " ".join(tokens[:count]))
    with pytest.raises(ModelFileError, match="more follows"):
        read(tmp_path, " ".join([*tokens, "0"]))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("0.250000", "0", r"line 2: the scaling is 0, not between"),
        ("0.250000", "nan", "line 2: .*'nan' is not a finite"),
        ("# views\n3", "# views\n1000000000", "number of views"),
        ("# visibility\n2", "# visibility\n3", "visibility"),
        ("1 \n1 \n", "1 \n2 \n", "other numbers than 0 and 1"),
        ("-60.000000000", "-600.000000000", "360 degrees"),
        ("3 3 3 2", "5 3 3 2", "marker of a patch"),
        ("3 3 3 2", "3 999999999 3 2", "patch width"),
        ("3 3 3 2", "3 3 3 1000000000", "number of experts"),
        ("3 3 3 2", "3 3 4 2", "not square"),
        ("3 3 3 2", "3 3 3 0", "view 0, landmark 0"),
        ("\n2 0", "\n1 0", "marker of an expert"),
        ("\n2 0", "\n2 2", "modality"),
        (" 3 3 5 ", " 3 3 4 ", "element type"),
        (" 3 3 5 ", " 30000 30000 5 ", "weights"),
        (" 3 3 5 ", " 3 3 5 1e39 ", "finite"),
    ],
)
def test_damage(tmp_path: Path, old: str, new: str, match: str) -> None:
    text = svr_text(TINY)
    assert old in text
    with little_memory(), pytest.raises(ModelFileError, match=match):
        read(tmp_path, text.replace(old, new, 1))


def test_experts_that_cannot_be_used(tmp_path: Path) -> None:
    hidden = random_svr(landmarks=2, support=3)
    hidden.count[:] = 0
    with pytest.raises(ModelFileError, match="landmark 0 is visible, but has no experts"):
        read(tmp_path, svr_text(hidden))
    hidden.visible[:] = False
    with pytest.raises(ModelFileError, match="no patch has experts"):
        read(tmp_path, svr_text(hidden))
    turned = random_svr(landmarks=2, support=3)
    turned.centres[1] += 1
    for other, match in ((turned, "other views"), (random_svr(landmarks=2, support=5), "size")):
        with pytest.raises(ModelFileError, match=match):
            load_openface(write_svr(tmp_path, TINY, other))
    with pytest.raises(ModelFileError, match="visibility"):
        read(tmp_path, svr_text(TINY), landmarks=3)


def test_random_damage(tmp_path: Path) -> None:
    rng = random.Random(20)
    intact = svr_text(TINY).encode()
    read_well = 0
    for _ in range(500):
        data = bytearray(intact)
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1, 5))] = rng.choice((b"", b"9", b"-", b" ", b"e9", b"\xff"))
        try:
            scale = read(tmp_path, bytes(data))
        except ModelFileError:
            continue
        read_well += 1
        for patch in scale.experts.values():
            assert all(np.isfinite([*e.weights.ravel(), e.slope, e.bias]).all() for e in patch)
    assert 50 < read_well < 450


@pytest.mark.usefixtures("as_users_run_it")
def test_arrays_that_do_not_go_together() -> None:
    good = arrays_of(TINY)
    for change, match in (
        ({"slope": np.zeros((1, 3, 2, 1))}, "slope"),
        ({"scalings": (1.0, 2.0)}, "scalings has 2 numbers for 1 scales"),
        ({"modalities": ("raw", "colour")}, "modalities"),
    ):
        with pytest.raises(ModelFileError, match=match):
            SVR.create(**{**good, **change})


@pytest.fixture(scope="module")
def model(shared: Path) -> jclnf.Model:
    return load_openface(shared / "openface" / "model" / "main_clm_general.txt")


def test_responses_are_openfaces(shared: Path, model: jclnf.Model) -> None:
    respond = eqx.filter_jit(lambda experts, *at: experts.responses(*at))
    views = set()
    for scale in scales(recording(shared / "openface", "stages_clm_svr_rotated")):
        seen = np.asarray(model.experts.visible[scale.index, scale.view])
        found = respond(model.experts, jnp.asarray(scale.maps("aoi")), *scale.position)
        wanted = scale.maps("responses")[seen]
        error = np.abs(found[seen] - wanted).max((1, 2))
        assert (error / wanted.max((1, 2))).max() <= 1e-4
        views.add(scale.view)
    assert views == {1, 2, 3, 4, 5, 6}


def test_fits_are_openfaces(shared: Path, model: jclnf.Model) -> None:
    starts = [(f"svr/{name}", name) for name in ("000", "001", "010", "020", "030")]
    check_fits(shared / "openface", model, "final_fits", starts, median=0.02, worst=0.1)
