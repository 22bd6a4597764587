"""OpenFace's files of action units: what is read from whole ones, and said of damaged ones."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support.action_unit_files import SIZE, predictor_file, write_predictors
from support.openface_files import little_memory

from jclnf.action_units import load_action_units
from jclnf.errors import ModelFileError
from jclnf.openface import find_action_units, read_action_units
from jclnf.openface._action_units import named_action_unit_files, read_predictor

DIMENSIONS = SIZE + 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_predictors(tmp_path_factory.mktemp("whole") / "AU_predictors")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "AU_predictors"))


def test_predictors_are_put_in_the_order_of_the_columns(whole: Path) -> None:
    arrays = read_action_units(whole / "main_dynamic_svms.txt")
    assert [(one.name, one.presence, one.dynamic, one.cutoff) for one in arrays.predictors] == [
        ("AU01", True, True, -1.0),
        ("AU12", True, False, -1.0),
        ("AU01", False, True, 0.3),
        ("AU12", False, False, -1.0),
    ]
    model = load_action_units(whole)
    assert model.columns == ["AU01_r", "AU12_r", "AU01_c", "AU12_c"]
    assert model.cutoffs == (0.3, -1.0)
    assert model.classes == ((0.0, 1.0), (0.0, 1.0))
    for column, index in enumerate((2, 3, 0, 1)):
        one = arrays.predictors[index]
        np.testing.assert_array_equal(model.weights[:, column], one.weights)
        expected = one.bias - one.means @ one.weights
        np.testing.assert_allclose(model.biases[column], expected, rtol=1e-12)
    static = load_action_units(whole, static=True)
    assert not static.uses_medians
    assert static.name == "static_svms"


def test_shown_numbers_are_limited_and_classified(whole: Path) -> None:
    model = load_action_units(whole)
    outputs = np.array([[7.0, -1.0, 0.1, -0.1], [2.5, 3.0, 0.0, 5.0]])
    expected = [[5, 0, 0, 1], [2.5, 3, 1, 0]]
    np.testing.assert_array_equal(model.shown(outputs), expected)


def test_they_are_found_beside_the_detector_or_where_models_are_installed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(tmp_path / "installed"))
    main = tmp_path / "build" / "model" / "main_clnf_general.txt"
    main.parent.mkdir(parents=True)
    with pytest.raises(ModelFileError, match=r"no predictors .* jclnf models install openface"):
        find_action_units(model=main)
    installed = tmp_path / "installed" / "2.2.0" / "originals" / "AU_predictors"
    shutil.copytree(whole, installed)
    assert find_action_units(model=main) == installed / "main_dynamic_svms.txt"
    beside = shutil.copytree(whole, tmp_path / "build" / "AU_predictors")
    assert find_action_units(model=main, static=True) == beside / "main_static_svms.txt"
    assert find_action_units(model=main.parent) == beside / "main_dynamic_svms.txt"
    assert find_action_units(beside.parent) == beside / "main_dynamic_svms.txt"
    assert find_action_units(beside / "list_static.txt") == beside / "list_static.txt"
    with pytest.raises(ModelFileError, match="holds no main_static_svms"):
        find_action_units(main.parent, static=True)


def read(folder: Path, data: bytes):
    path = folder / "one.dat"
    path.write_bytes(data)
    return read_predictor(path, "AU01", DIMENSIONS)


@pytest.mark.parametrize("kind", [0, 1, 4, 5])
def test_a_predictor_cut_off_anywhere(tmp_path: Path, kind: int) -> None:
    file = predictor_file(kind, np.linspace(-1, 1, DIMENSIONS))
    data = bytes(file.data)
    sizes = {0: 75268, 1: 75276, 4: 75284, 5: 75284}
    assert len(data) == sizes[kind] - 2 * 8 * (34 - 5)
    assert read(tmp_path, data).weights.shape == (DIMENSIONS,)
    starts = [offset for _, offset in file.fields]
    for size in {*starts, *(start + 3 for start in starts), len(data) - 1} - {0}:
        with pytest.raises(ModelFileError, match=r"one\.dat, byte \d+: .*truncated"):
            read(tmp_path, data[:size])
    with pytest.raises(ModelFileError, match=f"byte {len(data)}: 2 bytes follow"):
        read(tmp_path, data + b"\0\0")


def test_counts_kinds_and_numbers_that_no_predictor_has(tmp_path: Path) -> None:
    file = predictor_file(1, np.linspace(-1, 1, DIMENSIONS))
    integers = [name for name, _ in file.fields if name.endswith(("rows", "columns", "type"))]
    for name in ["kind", *integers]:
        offset = file.offsets(name)[0]
        true = struct.unpack_from("<i", file.data, offset)[0]
        for value in {-(2**31), -1, 0, 2, 3, 7, 10**6, 2**31 - 1} - {true}:
            data = bytearray(file.data)
            struct.pack_into("<i", data, offset, value)
            with little_memory(), pytest.raises(ModelFileError, match=r"one\.dat, byte"):
                read(tmp_path, bytes(data))
    for name in ("cutoff", "means", "weights", "bias"):
        for value in (np.nan, np.inf, -np.inf, 1e300):
            data = bytearray(file.data)
            struct.pack_into("<d", data, file.offsets(name)[0], value)
            with pytest.raises(ModelFileError, match=name):
                read(tmp_path, bytes(data))
    file = predictor_file(4, np.linspace(-1, 1, DIMENSIONS))
    for value in (np.nan, 0.5, 1.0, 2.0):
        data = bytearray(file.data)
        struct.pack_into("<d", data, file.offsets("class above 0")[0], value)
        with pytest.raises(ModelFileError, match="class"):
            read(tmp_path, bytes(data))


def test_any_bytes_make_a_finite_predictor_or_one_clear_line(tmp_path: Path, rng) -> None:
    data = bytes(predictor_file(5, np.linspace(-1, 1, DIMENSIONS)).data)
    refused = []
    for _ in range(200):
        damaged = bytearray(data)
        for at in rng.integers(0, 60 if rng.random() < 0.5 else len(data), rng.integers(1, 8)):
            damaged[at] = rng.integers(0, 256)
        damaged = damaged[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else damaged
        try:
            one = read(tmp_path, bytes(damaged))
            assert np.isfinite(one.weights).all()
            assert np.isfinite(one.means).all()
        except ModelFileError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(line.startswith(str(tmp_path / "one.dat")) for line in refused)
    assert not any("\n" in line for line in refused)


ENTRY = "AUPredictor list_dynamic.txt\nPDM pdm.txt\nTriangulation tris.txt\n"


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("main", "AUPredictor list_dynamic.txt\nPDM pdm.txt\n", "names no Triangulation"),
        ("main", ENTRY + "PDM pdm.txt\n", "line 4: a second PDM"),
        ("main", ENTRY + "LandmarkDetector a.txt\n", "line 4: unknown keyword"),
        ("main", ENTRY.replace("pdm.txt", "nothing.txt"), r"nothing\.txt: no such file; main_dyn"),
        ("main", ENTRY.replace("list_dynamic", "nothing"), r"nothing\.txt: no such file; main_dyn"),
        ("main", ENTRY.replace("tris.txt", "files"), "files: is a directory"),
        ("main", "", "is empty"),
        ("list", "files/AU01_r_dynamic.dat", "line 1: does not end in the name of one action"),
        ("list", "files/AU01_r_dynamic.dat AU01,AU02", "line 1: does not end in the name"),
        ("list", "\n# none\n", "lists no predictors"),
        (
            "list",
            "files/nothing.dat AU01",
            r"nothing\.dat: no such file; list_dynamic\.txt, line 1",
        ),
        ("list", "files/AU01_r_dynamic.dat AU01\n" * 2, "line 2: a second predictor of the inten"),
        ("list", "x.dat AU01\n" * 300, "over 200 predictors"),
        ("list", "pdm.txt AU01", "pdm.txt, byte 0: kind of predictor"),
        ("tris", "1\n2\n4\n0 1", "columns"),
        ("tris", "2\n3\n4\n0 1 2 3", "truncated"),
        ("tris", "1\n3\n4\n0 1 68", "is no landmark from 0 to 67"),
        ("tris", "1\n3\n4\n0 1 1.5", "is no landmark"),
        ("tris", "1\n3\n4\n0 1 3e38", "is no landmark"),
        ("tris", "1\n3\n6\n0 1 2", "element type"),
        ("tris", "1\n3\n4\n0 1 2 3", "more follows"),
        ("tris", "2000000000\n3\n4\n0 1 2", "truncated"),
        ("tris", "0\n3\n4\n", "has 0 triangles"),
        ("pdm", "6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 1 6 2", "has 2 landmarks"),
    ],
)
def test_damaged_lists(folder: Path, file: str, text: str, match: str) -> None:
    name = {"main": "main_dynamic_svms", "list": "list_dynamic"}.get(file, file)
    (folder / f"{name}.txt").write_text(text)
    with little_memory(), pytest.raises(ModelFileError, match=match) as error:
        read_action_units(folder / "main_dynamic_svms.txt")
    assert "\n" not in str(error.value)


def test_intensities_and_presences_are_both_needed(folder: Path) -> None:
    (folder / "list_dynamic.txt").write_text("files/AU01_r_dynamic.dat AU01")
    with pytest.raises(ModelFileError, match="names no predictors of presence"):
        load_action_units(folder)


def test_predictors_of_another_shape_model(folder: Path) -> None:
    write_predictors(folder.parent / "other", modes=6)
    shutil.copy(folder.parent / "other" / "pdm.txt", folder / "pdm.txt")
    with pytest.raises(ModelFileError, match=rf"means is 1 x {DIMENSIONS}, not 1 x {SIZE + 6}"):
        read_action_units(folder / "main_dynamic_svms.txt")


def test_the_originals_are_read_whole(shared: Path) -> None:
    folder = shared / "openface" / "AU_predictors"
    if not folder.is_dir():
        pytest.skip(f"needs OpenFace's predictors of action units, not at {folder}")
    for static in (False, True):
        model = load_action_units(folder, static=static)
        assert (len(model.intensities), len(model.presences)) == (17, 18)
        assert model.weights.shape == (4702, 35)
        assert model.uses_medians != static
        assert {c for n, c in zip(model.presences, model.classes, strict=True) if n == "AU12"} == {
            (1.0, 0.0)
        }
    assert len(named_action_unit_files(folder / "main_dynamic_svms.txt")) == 39
