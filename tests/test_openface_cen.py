"""OpenFace's files of CEN experts are read as they were written, or refused if damaged."""

import dataclasses
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from support.expert_files import cen_file, random_cen, write_cen
from support.openface_files import Writer, little_memory

from jclnf import load_openface
from jclnf.errors import ModelFileError
from jclnf.experts import CEN
from jclnf.openface._cen import CENScale, read_cen, read_cen_scale
from jclnf.openface._text import Entry

TINY = random_cen(landmarks=4, support=3, hidden=(2,))


def read(folder: Path, data: bytes, landmarks: int = 4) -> CENScale:
    path = folder / "cen.dat"
    path.write_bytes(data)
    return read_cen_scale(path, landmarks)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str) -> None:
    cen = random_cen(3, landmarks=5, support=3, hidden=(4, 2), scaling=0.5)
    scale = read(tmp_path, bytes(cen_file(cen, dtype=dtype).data), landmarks=5)
    assert scale.scaling == 0.5
    np.testing.assert_allclose(scale.centres, np.radians(cen.centres), rtol=1e-6)
    np.testing.assert_array_equal(scale.visible, cen.visible)
    np.testing.assert_allclose(scale.confidence, cen.confidence, rtol=1e-6)
    # Three of the frontal view, and of the left profile those that a view shows.
    assert len(scale.networks) == 6
    np.testing.assert_array_equal(scale.expert_of[0], [0, 1, 2, 1, 0])
    np.testing.assert_array_equal(scale.mirrored[0], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(scale.expert_of[1, :3], scale.expert_of[2, :1:-1])
    assert scale.mirrored[2, 2:].all()
    assert not scale.mirrored[1, :3].any()
    expected = cen.networks[0, 2]
    network = scale.networks[scale.expert_of[0, 2]]
    assert network.activations == "relu relu sigmoid"
    by_column = expected[0][2][:, 1:].reshape(4, 3, 3)
    by_row = network.weights[0].reshape(4, 3, 3)
    np.testing.assert_allclose(by_row, by_column.swapaxes(1, 2), rtol=1e-6)
    np.testing.assert_allclose(network.biases[0], expected[0][1] + expected[0][2][:, 0], rtol=1e-5)
    np.testing.assert_allclose(network.weights[2], expected[2][2], rtol=1e-6)
    np.testing.assert_allclose(network.biases[2], expected[2][1], rtol=1e-6)


def test_loading_gives_a_model_with_the_settings_for_such_experts(tmp_path: Path) -> None:
    scalings = (0.25, 0.35, 0.5, 1.0)
    files = [random_cen(k, support=3, scaling=a) for k, a in enumerate(scalings)]
    model = load_openface(write_cen(tmp_path, *files))
    assert isinstance(model.experts, CEN)
    assert model.experts.support == 3
    assert model.experts.architectures == (0, 0, 0, 0)
    assert model.defaults.windows == (11, 9, 7, 5)
    # As recorded of OpenFace.
    expected = [22.5, 15.218597, 7.5, 7.5]
    np.testing.assert_allclose(model.defaults.regularisation, expected, rtol=1e-6)
    np.testing.assert_allclose(model.defaults.kernel_width, [2.25, 2.3713567, 2.5, 2.5], rtol=1e-6)


@pytest.fixture
def tiny() -> Writer:
    return cen_file(TINY)


def test_files_cut_off_at_any_byte(tmp_path: Path, tiny: Writer) -> None:
    data = bytes(tiny.data)
    assert len(read(tmp_path, data).networks) == 4
    for size in range(1, len(data), 3):
        with pytest.raises(ModelFileError, match=r"cen\.dat, byte \d+: .*truncated"):
            read(tmp_path, data[:size])
    with pytest.raises(ModelFileError, match=f"byte {len(data)}: 1 bytes follow"):
        read(tmp_path, data + b"\0")


INTEGER_FIELDS = sorted(
    {name for name, _ in cen_file(TINY).fields}
    - {"scaling", "confidence", "centre", "visibility", "bias", "weights"}
    - {"mirror landmarks", "mirror views"}
)


@pytest.mark.parametrize("name", INTEGER_FIELDS)
def test_absurd_counts_and_markers(tmp_path: Path, tiny: Writer, name: str) -> None:
    offset = tiny.offsets(name)[0]
    true = struct.unpack_from("<i", tiny.data, offset)[0]
    allowed = {0, 1, 3} if name == "activation" else set()
    for value in {-(2**31), -1, 0, 1, 3, 7, 10**6, 2**30, 2**31 - 1} - {true} - allowed:
        data = bytearray(tiny.data)
        struct.pack_into("<i", data, offset, value)
        with little_memory(), pytest.raises(ModelFileError, match=r"cen\.dat, byte"):
            read(tmp_path, bytes(data))


@pytest.mark.parametrize("name", ["scaling", "confidence", "bias", "weights", "centre"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_numbers_that_single_precision_cannot_hold(
    tmp_path: Path, tiny: Writer, name: str, value: float
) -> None:
    data = bytearray(tiny.data)
    struct.pack_into("<d", data, tiny.offsets(name)[-1], value)
    with pytest.raises(ModelFileError, match=r"cen\.dat, byte"):
        read(tmp_path, bytes(data))


@pytest.mark.parametrize("name", ["mirror landmarks", "mirror views", "visibility"])
@pytest.mark.parametrize("value", [-1, 1000])
def test_indices_that_are_not_there(tmp_path: Path, tiny: Writer, name: str, value: int) -> None:
    data = bytearray(tiny.data)
    struct.pack_into("<i", data, tiny.offsets(name)[0], value)
    with pytest.raises(ModelFileError, match=r"cen\.dat, byte"):
        read(tmp_path, bytes(data))


def test_experts_that_cannot_be_used(tmp_path: Path) -> None:
    def changed(**changes: object) -> bytes:
        return bytes(cen_file(dataclasses.replace(TINY, **changes)).data)

    without = {at: layers for at, layers in TINY.networks.items() if at != (0, 1)}
    with pytest.raises(ModelFileError, match="view 0 shows landmark 1, which has no expert"):
        read(tmp_path, changed(networks=without))
    with pytest.raises(ModelFileError, match="no view shows a landmark"):
        read(tmp_path, changed(visible=np.zeros((3, 4), bool)))
    other = random_cen(landmarks=4, support=3, hidden=(3,)).networks[0, 1]
    with pytest.raises(ModelFileError, match="view 0, landmark 1: its layers differ"):
        read(tmp_path, changed(networks={**TINY.networks, (0, 1): other}))
    two = random_cen(landmarks=4, support=3, hidden=(2, 2)).networks[0, 1][:2]
    with pytest.raises(ModelFileError, match="the last layer has 2 outputs"):
        read(tmp_path, changed(networks=dict.fromkeys(TINY.networks, two)))
    linear = [(3, bias, weights) for _, bias, weights in TINY.networks[0, 1]]
    with pytest.raises(ModelFileError, match="the activation none"):
        read(tmp_path, changed(networks=dict.fromkeys(TINY.networks, linear)))
    larger = random_cen(landmarks=4, support=5, hidden=(2,))
    turned = dataclasses.replace(TINY, centres=TINY.centres + 1)
    for second, match in ((larger, "patches of another size"), (turned, "other views")):
        with pytest.raises(ModelFileError, match=match):
            load_openface(write_cen(tmp_path, TINY, second))


def test_random_damage(tmp_path: Path, tiny: Writer) -> None:
    rng = random.Random(20)
    read_well = 0
    for _ in range(500):
        data = bytearray(tiny.data)
        at = rng.randrange(len(data) - 4)
        extreme = rng.choice((-1, 0, 1, 255, 65536, 2**31 - 1, 0x7F800000))
        data[at : at + rng.choice((0, 1, 4))] = struct.pack("<i", extreme)[: rng.choice((1, 4))]
        try:
            scale = read(tmp_path, bytes(data))
        except ModelFileError:
            continue
        read_well += 1
        for network in scale.networks:
            assert all(np.isfinite(a).all() for a in (*network.weights, *network.biases))
    assert 20 < read_well < 480


def test_arrays_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "cen.dat"
    path.write_bytes(cen_file(TINY).data)
    good = read_cen([Entry("PatchesCEN", path, (), path, 1)], 4)
    CEN.create(**good)
    for change, match in (
        ({"expert_of": good["expert_of"] + 1}, "no such expert"),
        ({"biases": {**good["biases"], "0.1": np.zeros((4, 2))}}, r"biases\[0\.1\]"),
        ({"scalings": (1.0, 2.0)}, "scalings"),
        ({"activations": ("relu tanh",)}, "activations"),
        ({"activations": ("relu none",)}, "activations"),
    ):
        with pytest.raises(ModelFileError, match=match):
            CEN.create(**{**good, **change})
