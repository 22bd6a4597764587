"""OpenFace's files are read as they were written, and as the real ones are known to be."""

import dataclasses
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from support.openface_files import (
    OpenFaceModel,
    Scale,
    ccnf_file,
    pdm_text,
    random_model,
    write_model,
)

from jclnf import load_openface
from jclnf.openface._ccnf import CCNFScale, read_ccnf_scale, stack
from jclnf.openface._model import read_openface
from jclnf.openface._pdm import read_pdm

PATCH_ARRAYS = ("confidence", "weights", "norm_weight", "bias", "alpha", "beta")


@pytest.fixture(scope="module")
def model() -> OpenFaceModel:
    return random_model(landmarks=6, support=5, windows=(3, 5))


def read_scale(tmp_path: Path, scale: Scale, **options: object) -> CCNFScale:
    path = tmp_path / "patches.txt"
    path.write_bytes(ccnf_file(scale, **options).data)
    return read_ccnf_scale(path, scale.visible.shape[1])


def test_what_is_written_is_read(tmp_path: Path, model: OpenFaceModel) -> None:
    read = read_openface(write_model(tmp_path, model))
    np.testing.assert_array_equal(read.pdm.mean, model.mean)
    np.testing.assert_array_equal(read.pdm.components, model.components)
    np.testing.assert_array_equal(read.pdm.eigenvalues, model.eigenvalues)
    experts = read.experts
    assert experts["scalings"] == (0.25, 0.5)
    for k, scale in enumerate(model.scales):
        np.testing.assert_array_equal(experts["visible"][k], scale.visible)
        # A trip from radians in single precision to degrees and back.
        np.testing.assert_allclose(experts["centres"][k], scale.centres, rtol=1e-6)
        for name in PATCH_ARRAYS:
            np.testing.assert_array_equal(experts[name][k], getattr(scale, name), err_msg=name)
        assert experts["components"].keys() == scale.components.keys()
        for window, matrices in scale.components.items():
            np.testing.assert_array_equal(experts["components"][window][k], matrices)
    floats = [*read.pdm, *(experts[name] for name in PATCH_ARRAYS), *experts["components"].values()]
    assert {array.dtype for array in floats} == {np.dtype(np.float32)}
    assert experts["visible"].dtype == bool


def test_the_shape_file_lists_all_x_then_all_y_then_all_z(tmp_path: Path) -> None:
    path = tmp_path / "pdm.txt"
    path.write_text("# two points\n6\n1\n6\n1 2\n10 20\n100 200\n6 1 6\n1 2 3 4 5 6\n1 1 6 0.5")
    read = read_pdm(path)
    np.testing.assert_array_equal(read.mean, [[1, 10, 100], [2, 20, 200]])
    np.testing.assert_array_equal(read.components[..., 0], [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(read.eigenvalues, [0.5])


def test_loading_gives_a_model(tmp_path: Path, model: OpenFaceModel) -> None:
    loaded = load_openface(write_model(tmp_path, model))
    assert loaded.name == "clnf_general"
    assert loaded.scalings == (0.25, 0.5)
    np.testing.assert_array_equal(loaded.pdm.components, model.components)
    np.testing.assert_array_equal(loaded.experts.weights[1], model.scales[1].weights)
    assert loaded.defaults.windows == (11, 9)


def test_a_main_file_named_wild_gets_the_settings_for_such_faces(
    tmp_path: Path, model: OpenFaceModel
) -> None:
    loaded = load_openface(write_model(tmp_path, model, name="clnf_wild"))
    assert loaded.defaults.windows == (15, 13)


def test_a_detectors_list_or_a_folder_will_do(tmp_path: Path, model: OpenFaceModel) -> None:
    main = write_model(tmp_path, model)
    by_main = read_openface(str(main))
    write_model(tmp_path, random_model(1, landmarks=6, support=5), name="clnf_wild")
    write_model(tmp_path, model)
    for path in (tmp_path, tmp_path / "clnf_general.txt"):
        read = read_openface(path)
        assert read.name == "clnf_general"
        np.testing.assert_array_equal(read.experts["weights"], by_main.experts["weights"])
    main.unlink()
    assert read_openface(tmp_path).name == "clnf_wild"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n", b"\r\n"),
        (b"\n", b"\r"),
        (b"/", b"\\"),
        (b"\n", b"\n\n  # a remark\n"),
        (b"PDM ", b"\xef\xbb\xbfPDM\t  "),
    ],
)
def test_spellings_of_the_lists(
    tmp_path: Path, model: OpenFaceModel, old: bytes, new: bytes
) -> None:
    main = write_model(tmp_path, model)
    for path in (main, tmp_path / "clnf_general.txt", tmp_path / "pdms" / "pdm.txt"):
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new))
    np.testing.assert_array_equal(read_openface(main).pdm.mean, model.mean)


def test_folders_may_have_spaces_and_lie_elsewhere(tmp_path: Path, model: OpenFaceModel) -> None:
    write_model(tmp_path / "a model", model)
    main = tmp_path / "lists" / "main_clnf_mine.txt"
    main.parent.mkdir()
    main.write_text("LandmarkDetector ../a model/clnf_general.txt  \n")
    assert read_openface(main).name == "clnf_mine"
    main.write_text(f"LandmarkDetector {tmp_path / 'a model' / 'clnf_general.txt'}")
    np.testing.assert_array_equal(read_openface(main).pdm.mean, model.mean)


def test_patches_with_fewer_neurons_are_filled_with_zeros(
    tmp_path: Path, model: OpenFaceModel
) -> None:
    scale = dataclasses.replace(model.scales[0], neurons=model.scales[0].neurons.copy())
    scale.neurons[0, 0] = 1
    read = read_scale(tmp_path, scale)
    for name in ("weights", "norm_weight", "bias", "alpha"):
        expected = getattr(scale, name).copy()
        expected[0, 0, 1:] = 0
        np.testing.assert_array_equal(getattr(read, name), expected)


def test_windows_without_components_are_left_out(tmp_path: Path, model: OpenFaceModel) -> None:
    scale = model.scales[0]
    read = read_scale(tmp_path, scale, windows=(3, 7, 5, 9))
    assert set(read.components) == {3, 5}
    eye = dataclasses.replace(scale, components={}, beta=scale.beta[..., :0])
    read = read_scale(tmp_path, eye, windows=(3, 5))
    assert read.components == {}
    assert read.beta.shape == (*scale.visible.shape, 0)


def test_scales_with_fewer_neurons_components_and_windows_are_filled_with_zeros(
    tmp_path: Path,
) -> None:
    small = random_model(3, landmarks=6, support=5, windows=(5,), neurons=2, components=1)
    large = random_model(4, landmarks=6, support=5, windows=(3, 5), neurons=4, components=2)
    scales = [read_scale(tmp_path, model.scales[0]) for model in (small, large)]
    experts = stack(scales)
    assert experts["alpha"].shape[-1] == 4
    assert experts["beta"].shape[-1] == 2
    np.testing.assert_array_equal(experts["alpha"][0, ..., :2], small.scales[0].alpha)
    np.testing.assert_array_equal(experts["alpha"][0, ..., 2:], 0)
    np.testing.assert_array_equal(experts["beta"][0, ..., 1:], 0)
    np.testing.assert_array_equal(experts["components"][3][0], 0)
    np.testing.assert_array_equal(experts["components"][5][0, 1], 0)
    np.testing.assert_array_equal(experts["components"][5][0, :1], small.scales[0].components[5])
    np.testing.assert_array_equal(experts["components"][3][1], large.scales[0].components[3])


@pytest.mark.parametrize("code", [0, 4, 6])
def test_components_of_any_number_type(tmp_path: Path, code: int) -> None:
    dtype = {0: "u1", 4: "<i4", 6: "<f8"}[code]
    model = random_model(landmarks=2, support=3, windows=(3,), components=1, scalings=(0.25,))
    scale = model.scales[0]
    scale.components[3] = np.abs(scale.components[3])
    file = ccnf_file(scale)
    start = file.offsets("component")[0]
    data = bytes(file.data[: start - 4]) + struct.pack("<i", code)
    data += scale.components[3].astype(dtype).tobytes() + bytes(file.data[start + 81 * 4 :])
    path = tmp_path / "patches.txt"
    path.write_bytes(data)
    read = read_ccnf_scale(path, 2)
    np.testing.assert_array_equal(read.components[3], scale.components[3])


def test_the_written_shape_file_is_as_openfaces() -> None:
    lines = pdm_text(random_model()).splitlines()
    assert lines[1:4] == ["30", "1", "6"]


REAL = {
    "main_clnf_general.txt": ((0.25, 0.35, 0.5), 7, 68, 34, 3),
    "main_clnf_wild.txt": ((0.25, 0.35, 0.5, 1.0), 3, 68, 34, 3),
    "model_eye/main_clnf_synth_left.txt": ((1.0, 1.5), 1, 28, 10, 0),
    "model_eye/main_clnf_synth_right.txt": ((1.0, 1.5), 1, 28, 10, 0),
    "model_inner/main_clnf_inner.txt": ((1.0,), 7, 51, 32, 3),
}


@pytest.mark.parametrize("name", REAL)
def test_openfaces_own_models(shared: Path, name: str) -> None:
    scalings, views, n, m, b = REAL[name]
    read = read_openface(shared / "openface" / "model" / name)
    assert read.pdm.mean.shape == (n, 3)
    assert read.pdm.components.shape == (n, 3, m)
    experts = read.experts
    assert experts["scalings"] == scalings
    assert experts["weights"].shape == (len(scalings), views, n, 7, 11, 11)
    assert experts["beta"].shape == (len(scalings), views, n, b)
    assert set(experts["components"]) == ({7, 9, 11, 15} if b else set())
    has_neurons = (experts["alpha"] != 0).any(axis=-1)
    np.testing.assert_array_equal(experts["visible"], has_neurons)
    assert np.abs(experts["centres"]).max() == pytest.approx(
        np.radians(max(0, {7: 70, 3: 20}.get(views, 0)))
    )


def test_openfaces_shape_model_is_a_face(shared: Path) -> None:
    pdm = read_openface(shared / "openface" / "model").pdm
    # The nose tip (30) lies before the chin (8), and that below it; jaw ends left and right.
    assert pdm.mean[30, 2] < pdm.mean[8, 2]
    assert pdm.mean[30, 1] < pdm.mean[8, 1]
    assert pdm.mean[0, 0] < -60 < 60 < pdm.mean[16, 0]
    basis = pdm.components.reshape(204, 34)
    np.testing.assert_allclose(basis.T @ basis, np.eye(34), atol=1e-4)
    assert (np.diff(pdm.eigenvalues) <= 0).all()


def test_patches_of_the_general_model_lie_where_the_format_says(shared: Path) -> None:
    """The second scale's first patches, found in the file by arithmetic alone."""
    folder = shared / "openface" / "model"
    data = (folder / "patch_experts" / "ccnf_patches_0.35_general.txt").read_bytes()
    experts = read_openface(folder).experts
    header = 8 + 4 + 7 * (12 + 24) + 7 * (12 + 68 * 4) + 4
    header += sum(8 + 3 * (12 + 4 * window**4) for window in (7, 9, 11, 15))
    neuron = 4 + 4 + 24 + 12 + 121 * 4
    for landmark in (0, 1, 67):
        start = header + landmark * (16 + 7 * neuron + 3 * 8 + 8)
        assert struct.unpack_from("<4i", data, start) == (5, 11, 11, 7)
        for q in (0, 6):
            at = start + 16 + q * neuron
            assert struct.unpack_from("<2i", data, at) == (2, 0)
            numbers = struct.unpack_from("<3d3i121f", data, at + 8)
            assert numbers[3:6] == (11, 11, 5)
            index = (1, 0, landmark, q)
            names = ("norm_weight", "bias", "alpha")
            assert [experts[name][index] for name in names] == [np.float32(x) for x in numbers[:3]]
            np.testing.assert_array_equal(
                experts["weights"][index], np.reshape(numbers[6:], (11, 11))
            )
        *beta, confidence = struct.unpack_from("<4d", data, start + 16 + 7 * neuron)
        np.testing.assert_array_equal(experts["beta"][1, 0, landmark], np.float32(beta))
        assert experts["confidence"][1, 0, landmark] == np.float32(confidence)


def test_a_model_is_read_from_a_copy_without_parts_and_validator(
    shared: Path, tmp_path: Path
) -> None:
    source = shared / "openface" / "model"
    for name in ("main_clnf_wild.txt", "clnf_wild.txt"):
        shutil.copy(source / name, tmp_path)
    for subfolder in ("pdms", "patch_experts"):
        (tmp_path / subfolder).symlink_to(source / subfolder)
    loaded = load_openface(tmp_path)
    assert loaded.name == "clnf_wild"
    assert loaded.defaults.windows == (15, 13, 11, 11)
