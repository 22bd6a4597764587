"""Model files: what is saved comes back, files of version 2 too, and malformed ones say so."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.synthetic import planted

import jclnf
from jclnf.errors import ModelFileError
from jclnf.openface import Validator

DATA = Path(__file__).parent / "data"


pytestmark = pytest.mark.usefixtures("as_users_run_it")


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
    with pytest.raises(ModelFileError, match="save the model before it is prepared"):
        jclnf.save_model(model.prepare(), tmp_path / "m.safetensors")


def test_no_bundled_model_says_what_to_do(monkeypatch):
    monkeypatch.setattr("jclnf.files._find.bundled_models", list)
    with pytest.raises(ModelFileError, match=r"default: no such file, .* give the path of one"):
        jclnf.load_model()


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_truncated_files(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
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
        except ModelFileError:
            refused += 1
        else:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))
    assert refused > 100


def changed(path, tensors=(), header=None):
    """Store a file with some tensors changed, and what `header` makes of the description."""
    with safe_open(path, framework="np") as file:
        text = json.loads(file.metadata()["jclnf"])
    if header is not None:
        header(text)
    save_file(load_file(path) | dict(tensors), path, metadata={"jclnf": json.dumps(text)})


def test_other_versions_and_other_files_are_named(saved):
    changed(saved, header=lambda text: text.update(version=99))
    with pytest.raises(ModelFileError, match=r"format version 99, .* update jclnf"):
        jclnf.load_model(saved)
    save_file(load_file(saved), saved)
    with pytest.raises(ModelFileError, match="not one of jclnf's models"):
        jclnf.load_model(saved)


def _tensors(name, old):
    """Malformed stand-ins of a tensor."""
    if old.dtype.kind == "f" and old.size:
        yield np.full_like(old, np.nan)
    # Kernels of another side may give maps of the same size once these are pooled.
    for axis in range(2 if name.endswith("kernels") else old.ndim):
        if name == "defaults.rotations" and axis == 0:
            continue  # there may be any number
        yield np.ascontiguousarray(np.take(old, range(old.shape[axis] - 1), axis))
    yield old[None].copy()
    if "defaults" not in name:  # settings may be whole numbers
        yield old.astype(np.uint8 if old.dtype.kind == "f" else np.float32)
    if name.endswith(("eigenvalues", "expert_of", "vertices")):
        yield -1 - old


@pytest.mark.parametrize("kind", ["ccnf", "svr", "cen"])
def test_malformed_tensors_are_named(kind, tmp_path):
    """JAX would clip indices beyond the end of one that is too short, and fit something else."""
    model = jclnf.load_model(DATA / f"version2_{kind}.safetensors")
    path = tmp_path / "model.safetensors"
    jclnf.save_model(model, path)
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    for name, old in tensors.items():
        for new in _tensors(name, old):
            save_file(tensors | {name: new}, path, metadata=metadata)
            with pytest.raises(ModelFileError) as error:
                jclnf.load_model(path)
            text = str(error.value)
            assert text.startswith(str(path))
            known = {part for other in tensors for part in other.split(".") if part.isalpha()}
            assert any(field in text for field in known), (name, text)


@pytest.mark.parametrize(
    ("kind", "of", "field", "value"),
    [
        ("ccnf", "experts", "scalings", [0.5]),
        ("ccnf", "experts", "scalings", [0.5, -1.0]),
        ("ccnf", "experts", "scalings", [0.5, float("nan")]),
        ("ccnf", "experts", "scalings", ["a", "b"]),
        ("ccnf", "experts", "support", 7),
        ("ccnf", "experts", "support", "5"),
        ("ccnf", "defaults", "windows", [5]),
        ("ccnf", "defaults", "windows", [5, 3.5]),
        ("ccnf", "defaults", "windows", [5, -3]),
        ("ccnf", "defaults", "iterations", 0),
        ("ccnf", "defaults", "tolerance", float("nan")),
        ("svr", "experts", "modalities", ["raw", "smell"]),
        ("svr", "experts", "modalities", ["raw"]),
        ("cen", "experts", "architectures", [0, 2]),
        ("cen", "experts", "architectures", [0]),
        ("cen", "experts", "activations", ["relu none", "sigmoid"]),
        ("cen", "experts", "activations", ["relu relu sigmoid", "sigmoid"]),
    ],
)
def test_malformed_descriptions_are_named(kind, of, field, value, tmp_path):
    path = tmp_path / "model.safetensors"
    jclnf.save_model(jclnf.load_model(DATA / f"version2_{kind}.safetensors"), path)
    changed(path, header=lambda text: text["model"]["fields"][of]["fields"].update({field: value}))
    with pytest.raises(ModelFileError, match=rf"model\.safetensors: .*({field}|weights|windows)"):
        jclnf.load_model(path)


@pytest.mark.parametrize("kind", ["ccnf", "svr", "cen"])
def test_files_of_version_2_give_the_fits_that_they_gave(kind, tmp_path):
    """Written by the code of then, with what its fits were."""
    expected = json.loads((DATA / "version2.json").read_text())[kind]
    model = jclnf.load_model(DATA / f"version2_{kind}.safetensors")
    jclnf.save_model(model, tmp_path / "again.safetensors")
    again = jclnf.load_model(tmp_path / "again.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert isinstance(model.confidence, Validator) == (kind != "cen")
    assert (model.early_termination is not None) == (kind == "cen")
    y, x = np.mgrid[:160, :160].astype(np.float32)
    image = jnp.asarray(120 + 60 * np.sin(x / 7) + 50 * np.cos(y / 5 + x / 11))
    fit = jclnf.fit(again, image, np.float32([20, 25, 110, 100]), init=np.zeros(3))
    np.testing.assert_allclose(fit.landmarks, expected["landmarks"], atol=2e-3)
    assert bool(fit.success) == expected["success"]
    if expected["confidence"] is not None:
        assert float(fit.confidence) == pytest.approx(expected["confidence"])


def test_every_array_of_a_version_2_file_is_in_the_model():
    for path in [*DATA.glob("*.safetensors"), jclnf.files.find_model("default")]:
        model = jclnf.load_model(path)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model)]
        for name, tensor in load_file(path).items():
            assert any(np.array_equal(tensor, leaf) for leaf in leaves), name


def test_parts_and_validator_are_there_or_said_not_to_be(saved):
    whole = jclnf.load_model(DATA / "version2_ccnf.safetensors", parts=True, validator=True)
    assert [part.name for part in whole.parts] == ["eye"]
    for option in ("parts", "validator"):
        with pytest.raises(ModelFileError, match=f"the model has no {option}: give"):
            jclnf.load_model(saved, **{option: True})


def test_fields_that_came_later_have_their_defaults(saved):
    changed(saved, header=lambda text: text["model"]["fields"]["defaults"]["fields"].pop("parts"))
    assert jclnf.load_model(saved).defaults.parts is False


def test_files_are_written_whole_and_for_others_to_read(model, saved, monkeypatch):
    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~umask
    before = saved.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(jclnf.errors.JclnfError, match="no room"):
        jclnf.save_model(dataclasses.replace(model, name="other"), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        jclnf.load_model(tmp_path / "nothing.safetensors")


def test_names(tmp_path, monkeypatch):
    """The bundled model, an installed one by its name, and what is said of any other name."""
    from support.openface_files import random_model, write_model

    monkeypatch.setattr("jclnf.files._find.models_folder", lambda: tmp_path)
    monkeypatch.setattr("jclnf.files._find.installed_mains", lambda: [main])
    main = write_model(tmp_path, random_model(landmarks=10))
    assert jclnf.files.find_model("clnf_general") == main
    assert jclnf.load_model("clnf_general").pdm.n_landmarks == 10
    assert jclnf.load_model(tmp_path).name == jclnf.load_model(main).name == "clnf_general"
    assert jclnf.files.find_model("default").name == "default.safetensors"
    assert jclnf.load_model("default").name == jclnf.load_model().name
    with pytest.raises(ModelFileError, match=r"defautl: .*there are: default, clnf_general\)"):
        jclnf.load_model("defautl")
    with pytest.raises(ModelFileError, match="no such file; main_clnf_general"):
        jclnf.load_model("clnf_general", validator=True)


def test_where_a_model_cannot_be_written(model, tmp_path):
    for path in (tmp_path / "model.bin", tmp_path / "nowhere" / "model.safetensors"):
        with pytest.raises(jclnf.errors.JclnfError, match=path.name):
            jclnf.save_model(model, path)
