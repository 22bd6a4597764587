import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.synthetic import planted

import jclnf


@pytest.fixture(scope="module")
def model():
    return planted().model


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    jclnf.save_model(model, path)
    return path


def test_a_model_comes_back_as_it_was(model, saved):
    loaded = jclnf.load_model(saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    for before, after in zip(jax.tree.leaves(model), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(before, after)


def test_prepared_experts_are_not_stored(model, tmp_path):
    with pytest.raises(jclnf.ModelFileError, match="save the model before it is prepared"):
        jclnf.save_model(model.prepare(), tmp_path / "m.safetensors")


def test_no_bundled_model_says_what_to_do(monkeypatch):
    monkeypatch.setattr("jclnf.files._serialise.DEFAULT_MODEL", "absent.safetensors")
    with pytest.raises(jclnf.ModelFileError, match="give the path of one"):
        jclnf.load_model()


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_truncated_files(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(jclnf.ModelFileError, match="not a readable safetensors file"):
        jclnf.load_model(saved)


def test_damaged_files_load_or_say_so(saved, rng):
    """Bits flipped in the header: never anything but a model or our error."""
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(header)] ^= 1 << rng.integers(8)
        saved.write_bytes(damaged)
        try:
            loaded = jclnf.load_model(saved)
        except jclnf.ModelFileError:
            refused += 1
        else:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))
    assert refused > 100


def test_wrong_contents_are_named(saved):
    tensors = load_file(saved)

    def store(**changes):
        header = json.loads(metadata["jclnf"]) | changes
        save_file(tensors, saved, metadata={"jclnf": json.dumps(header)})

    from safetensors import safe_open

    with safe_open(saved, framework="np") as file:
        metadata = file.metadata()
    store(version=99)
    with pytest.raises(jclnf.ModelFileError, match="format version 99"):
        jclnf.load_model(saved)
    store(kind="forest")
    with pytest.raises(jclnf.ModelFileError, match="forest"):
        jclnf.load_model(saved)
    store()
    jclnf.load_model(saved)
    save_file(tensors, saved)
    with pytest.raises(jclnf.ModelFileError, match="not one of jclnf's models"):
        jclnf.load_model(saved)
    tensors["pdm.mean"] = np.full_like(tensors["pdm.mean"], np.nan)
    store()
    with pytest.raises(jclnf.ModelFileError, match=r"pdm\.mean holds numbers that are not finite"):
        jclnf.load_model(saved)
    tensors["pdm.mean"] = np.zeros((7, 3), np.float32)
    store()
    with pytest.raises(jclnf.ModelFileError, match=r"model\.safetensors: "):
        jclnf.load_model(saved)


def test_missing_file(tmp_path):
    with pytest.raises(jclnf.ModelFileError, match="no such file"):
        jclnf.load_model(tmp_path / "nothing.safetensors")


def test_tensors_that_do_not_go_together_are_refused(saved):
    """JAX would clip indices beyond the end of one that is too short, and fit something else."""
    from safetensors import safe_open

    with safe_open(saved, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    for name, tensor in tensors.items():
        for axis in range(tensor.ndim):
            cut = np.ascontiguousarray(np.take(tensor, range(tensor.shape[axis] - 1), axis))
            save_file(tensors | {name: cut}, saved, metadata=metadata)
            with pytest.raises(jclnf.ModelFileError, match=r"model\.safetensors"):
                jclnf.load_model(saved)
    negative = tensors | {"pdm.eigenvalues": -tensors["pdm.eigenvalues"]}
    save_file(negative, saved, metadata=metadata)
    with pytest.raises(jclnf.ModelFileError, match="not positive"):
        jclnf.load_model(saved)


def test_where_a_model_cannot_be_written(model, tmp_path):
    for path in (tmp_path / "model.bin", tmp_path / "nowhere" / "model.safetensors"):
        with pytest.raises(jclnf.JclnfError, match=path.name):
            jclnf.save_model(model, path)
