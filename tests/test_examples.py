"""The examples, run as their users run them: in one process, so that they share compilations."""

import functools
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

import jclnf
import jclnf.video
from jclnf.experts import initial_weights, trunk_shapes
from jclnf.fitting import start_shapes
from jclnf.train._pipeline import PipelineConfig, assemble

EXAMPLES = REPOSITORY / "examples"

pytestmark = [pytest.mark.examples, pytest.mark.usefixtures("as_users_run_it")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs an example in a folder that all share, and gives what it prints."""

    def example(name: str, *arguments: object) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return example


def test_a_photograph(run, folder):
    printed = run("01_photograph.py")
    assert "face 0: The face was fitted" in printed
    drawn, photo = cv2.imread(str(folder / "landmarks.png")), cv2.imread(str(sample("photograph")))
    assert drawn.shape == photo.shape
    y, x = np.argwhere((drawn != photo).any(-1)).mean(0)
    assert 150 < x < 370
    assert 150 < y < 380


def sample(name: str, *arguments: object) -> object:
    return runpy.run_path(str(EXAMPLES / "samples.py"))[name](*arguments)


def test_a_video(run):
    lines = run("02_video.py").splitlines()
    assert len(lines) == 12
    assert all("face 0: nose at" in line for line in lines)


def test_a_camera():
    """There is none here: it is read alone."""
    path = EXAMPLES / "03_webcam.py"
    compile(path.read_text(), str(path), "exec")


def test_a_gradient(run):
    printed = run("04_gradient.py")
    assert "opening of the mouth: 0.0" in printed or "opening of the mouth: 0.1" in printed
    assert "nan" not in printed


def test_tuning(run, folder):
    data = folder / "annotated"
    printed = run("05_tune.py")
    assert "epoch 2:" in printed
    assert (data / "person0" / "0.pts").exists()
    tuned = jclnf.load_model(folder / "tuned.safetensors")
    assert tuned.pdm.n_landmarks == 68


def test_fine_tuning(run, folder):
    """Of a small model, with random weights: that of the bundled one takes a minute to compile."""
    save_small_model(folder / "small.safetensors")
    printed = run("07_fine_tune.py", folder / "annotated", "more.safetensors", "small.safetensors")
    assert "before, held out:" in printed
    assert jclnf.load_model(folder / "more.safetensors").pdm.n_modes == 3


def save_small_model(path: Path) -> None:
    config = PipelineConfig(channels=(4, 4, 4, 4, 4), grid=16, scalings=(0.1,), windows=(7,))
    pdm = jclnf.load_model().pdm
    pdm = jclnf.PDM(pdm.mean, pdm.components[..., :3], pdm.eigenvalues[:3])
    start = initial_weights(start_shapes(3), jax.random.key(0), last=("out",))
    trunk = initial_weights(trunk_shapes(68, config.channels), jax.random.key(1))
    jclnf.save_model(assemble(pdm, start, [trunk], config, "small"), path)


def test_many_images(run):
    printed = run("06_many_images.py")
    assert "a face in 6 of 6 images" in printed
    assert "landmarks (6, 68, 2), 6 fitted" in printed


def test_action_units(run, folder, shared, monkeypatch):
    """With OpenFace's files of the development data, without what compiles longest."""
    less = {"parts": False, "validator": False, "detector": "jclnf"}
    monkeypatch.setattr(jclnf.video, "Settings", functools.partial(jclnf.video.Settings, **less))
    model = shared / "openface" / "model" / "main_clnf_general.txt"
    run("08_action_units.py", sample("clip", folder / "short.mp4", 6), "action_units.png", model)
    assert (folder / "action_units.png").exists()


def test_the_table_in_pandas(run, folder):
    printed = run("09_table_pandas.py")
    assert "12 frames, faces in 12 of them" in printed
    table = pd.read_csv(folder / "videos" / "clip.csv")
    assert list(table["face_id"].unique()) == [0]


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="needs R")
def test_the_table_in_r(tmp_path, rng):
    """Two faces, of which one is lost for a while, and a frame without one."""
    names = [f"{axis}_{i}" for i in range(68) for axis in "xy"]
    table = pd.DataFrame(rng.uniform(100, 300, (8, len(names))), columns=names)
    table.insert(0, "frame", [1, 1, 2, 2, 3, 3, 4, 5])
    table.insert(1, "face_id", [0, 1, 0, 1, 0, 1, 0, np.nan])
    table.insert(2, "success", [1, 1, 1, 0, 1, 1, 1, 0])
    table.insert(3, "pose_Ry", np.radians(rng.uniform(-30, 30, 8)))
    table.loc[table["success"] == 0, ["pose_Ry", *names]] = np.nan
    table.to_csv(tmp_path / "table.csv", index=False)
    program = ["Rscript", str(EXAMPLES / "10_table.R"), str(tmp_path / "table.csv")]
    printed = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    lines = printed.splitlines()
    assert lines[0] == "5 frames, faces in 4 of them"
    seen = table[table["success"] == 1]
    yaw = np.degrees(seen["pose_Ry"])
    found = [float(word) for word in lines[1].split() if word[-1].isdigit()]
    np.testing.assert_allclose(found, [yaw.min(), yaw.max()], atol=0.051)

    def opening(first, second):
        return np.hypot(*(seen[f"{axis}_{first}"] - seen[f"{axis}_{second}"] for axis in "xy"))

    mouths = (opening(62, 66) / opening(36, 45)).groupby(seen["face_id"]).mean()
    found = [float(line.split()[-1]) for line in lines[-2:]]
    np.testing.assert_allclose(found, mouths, rtol=1e-5)


def test_an_export(run, folder):
    printed = run("12_export.py")
    served = jax.export.deserialize(bytearray((folder / "fit.jaxexport").read_bytes()))
    assert served.platforms == ("cpu", "cuda")
    assert "tip of the nose at [27" in printed or "tip of the nose at [26" in printed
