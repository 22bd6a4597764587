"""Damaged and hostile models: a finite model or a `ModelFileError`, soon, and in little memory."""

import dataclasses
import random
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from support.openface_files import (
    Writer,
    ccnf_file,
    little_memory,
    random_model,
    tiny_model,
    write_model,
)

from jclnf.errors import ModelFileError
from jclnf.openface._ccnf import CCNFScale, read_ccnf_scale
from jclnf.openface._model import OpenFaceArrays, assemble, read_openface

TINY = tiny_model()


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", TINY)


@pytest.fixture
def tiny() -> Writer:
    return ccnf_file(TINY.scales[0])


def read_patches(folder: Path, data: bytes, landmarks: int = 2) -> CCNFScale:
    path = folder / "patches.txt"
    path.write_bytes(data)
    return read_ccnf_scale(path, landmarks)


def is_finite(read: OpenFaceArrays) -> bool:
    arrays = [*read.pdm, *read.experts["components"].values()]
    arrays += [array for array in read.experts.values() if isinstance(array, np.ndarray)]
    return all(np.isfinite(array).all() for array in arrays)


def test_patches_cut_off_at_any_byte(tmp_path: Path, tiny: Writer) -> None:
    data = bytes(tiny.data)
    assert read_patches(tmp_path, data).weights.shape == (2, 2, 2, 3, 3)
    for size in range(1, len(data), 3):
        with pytest.raises(ModelFileError, match=r"patches\.txt, byte \d+: .*truncated"):
            read_patches(tmp_path, data[:size])
    with pytest.raises(ModelFileError, match="is empty"):
        read_patches(tmp_path, b"")
    with pytest.raises(ModelFileError, match=f"byte {len(data)}: 1 bytes follow"):
        read_patches(tmp_path, data + b"\0")


def test_a_truncated_file_names_the_field_and_where_it_starts(tmp_path: Path, tiny: Writer) -> None:
    offset = tiny.offsets("confidence")[1]
    with pytest.raises(ModelFileError, match=f"byte {offset}: view 0, landmark 1: .*confidence"):
        read_patches(tmp_path, bytes(tiny.data[: offset + 5]))


INTEGER_FIELDS = sorted(
    {name for name, _ in ccnf_file(TINY.scales[0]).fields}
    - {"scaling", "norm_weight", "bias", "alpha", "beta", "confidence"}
    - {"centre", "visibility", "component", "weights", "end of an empty patch"}
)


@pytest.mark.parametrize("name", INTEGER_FIELDS)
def test_absurd_counts_and_markers(tmp_path: Path, tiny: Writer, name: str) -> None:
    for offset in tiny.offsets(name)[:2]:
        true = struct.unpack_from("<i", tiny.data, offset)[0]
        for value in {-(2**31), -1, 0, 1, 3, 7, 10**6, 2**30, 2**31 - 1} - {true}:
            data = bytearray(tiny.data)
            struct.pack_into("<i", data, offset, value)
            with little_memory(), pytest.raises(ModelFileError, match=r"patches\.txt, byte"):
                read_patches(tmp_path, bytes(data))


@pytest.mark.parametrize("name", ["scaling", "norm_weight", "bias", "alpha", "beta", "confidence"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e300])
def test_numbers_that_single_precision_cannot_hold(
    tmp_path: Path, tiny: Writer, name: str, value: float
) -> None:
    data = bytearray(tiny.data)
    struct.pack_into("<d", data, tiny.offsets(name)[-1], value)
    with pytest.raises(ModelFileError, match=name):
        read_patches(tmp_path, bytes(data))


@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [
        ("centre", "<d", np.nan),
        ("centre", "<d", 1e5),
        ("component", "<f", np.inf),
        ("component", "<f", 1e30),
        ("weights", "<f", np.nan),
        ("visibility", "<i", 2),
        ("visibility", "<i", -1),
    ],
)
def test_elements_that_no_such_matrix_has(
    tmp_path: Path, tiny: Writer, name: str, dtype: str, value: float
) -> None:
    data = bytearray(tiny.data)
    struct.pack_into(dtype, data, tiny.offsets(name)[0], value)
    with pytest.raises(ModelFileError, match=name):
        read_patches(tmp_path, bytes(data))


def test_other_inconsistencies_of_patches(tmp_path: Path) -> None:
    scale = TINY.scales[0]

    def refuses(match: str, landmarks: int = 2, **changes: object) -> None:
        data = bytes(ccnf_file(dataclasses.replace(scale, **changes)).data)
        with pytest.raises(ModelFileError, match=match):
            read_patches(tmp_path, data, landmarks)

    refuses("visibility.* is 2 x 1, not 3 x 1", landmarks=3)
    refuses("landmark 1: is visible, but its patch is empty", neurons=np.array([[2, 0], [0, 2]]))
    nothing = np.zeros((2, 2), int)
    refuses("all patches are empty", neurons=nothing, visible=nothing.astype(bool))
    refuses("window 3 has 2 components", components={2: np.eye(4)[None], 3: np.zeros((2, 9, 9))})
    with pytest.raises(ModelFileError, match="window size 2 occurs twice"):
        read_patches(tmp_path, bytes(ccnf_file(scale, windows=(2, 3, 2)).data))


def test_uneven_neurons_do_not_fill_memory(tmp_path: Path) -> None:
    """A file of 0.6 MB whose patches, made even, would take 320 MB."""
    model = random_model(landmarks=100, views=20, neurons=1, support=1, windows=(), scalings=(1.0,))
    scale = model.scales[0]
    many = 10_000
    widened = {
        name: np.broadcast_to(getattr(scale, name)[:, :, :1], (20, 100, many, *shape))
        for name, shape in [("weights", (1, 1)), ("norm_weight", ()), ("bias", ()), ("alpha", ())]
    }
    neurons = scale.neurons.copy()
    neurons[0, 1] = many
    data = bytes(ccnf_file(dataclasses.replace(scale, neurons=neurons, **widened)).data)
    assert len(data) < 700_000
    with little_memory(), pytest.raises(ModelFileError, match="uneven"):
        read_patches(tmp_path, data, landmarks=100)


def test_scales_that_do_not_go_together(tmp_path: Path) -> None:
    views = random_model(landmarks=2, views=1, support=3, neurons=2, windows=(3,), components=1)
    turned = dataclasses.replace(TINY.scales[1], centres=TINY.scales[1].centres + 0.1)
    support = random_model(landmarks=2, views=2, support=5, neurons=2, windows=(3,), components=1)
    for other, match in (
        (views.scales[1], "other views than"),
        (turned, "other views than"),
        (support.scales[1], "patches of another size than"),
    ):
        model = dataclasses.replace(TINY, scales=[TINY.scales[0], other])
        with pytest.raises(ModelFileError, match=match):
            read_openface(write_model(tmp_path, model))


def test_more_scales_than_openface_has_settings_for(tmp_path: Path) -> None:
    model = random_model(
        landmarks=2, views=1, support=3, windows=(), scalings=(0.25, 0.3, 0.4, 0.5, 1.0)
    )
    main = write_model(tmp_path, model)
    with pytest.raises(ModelFileError, match=r"main_clnf_general.txt: .*scales"):
        assemble(main, read_openface(main))


def test_components_without_mirror_symmetry(tmp_path: Path) -> None:
    components = {window: array.copy() for window, array in TINY.scales[0].components.items()}
    components[3][0, 0, 1] += 1
    scales = [dataclasses.replace(TINY.scales[0], components=components)]
    main = write_model(tmp_path, dataclasses.replace(TINY, scales=scales))
    with pytest.raises(ModelFileError, match=r"main_clnf_general.txt: .*not symmetric"):
        assemble(main, read_openface(main))


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Flip bits, write extreme fields, or take out, repeat or put in a run of bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, size = rng.randrange(len(changed)), rng.choice((1, 4, 8, 40))
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            aligned = at & ~3
            extreme = rng.choice((-1, 0, 1, 2, 255, 65536, 2**31 - 1, -(2**31), 0x7F800000))
            changed[aligned : aligned + 4] = struct.pack("<i", extreme)
        elif kind == 2 and len(changed) > size:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        else:
            noise = rng.choice((rng.randbytes(size), b"9" * size, b"-", b" ", b"\n", b"e9"))
            changed[at : at + rng.choice((0, len(noise)))] = noise
    return bytes(changed)


def test_random_damage(main: Path) -> None:
    rng = random.Random(20)
    folder = main.parent
    files = [main, *folder.glob("clnf*.txt"), folder / "pdms" / "pdm.txt"]
    files += [folder / "patch_experts" / "ccnf_patches_0.25.txt"] * 3
    intact = {path: path.read_bytes() for path in files}
    loaded = assembled = 0
    for _ in range(600):
        path = rng.choice(files)
        path.write_bytes(mutate(rng, intact[path]))
        try:
            read = read_openface(main)
            assert is_finite(read)
            loaded += 1
            if loaded % 5 == 0:
                model = assemble(main, read)
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
                assembled += 1
        except ModelFileError:
            pass
        path.write_bytes(intact[path])
    # Most damage to weights goes unnoticed, most of the rest does not.
    assert 60 < loaded < 450
    assert assembled > 6
