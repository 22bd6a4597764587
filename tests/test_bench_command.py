import dataclasses
import json

import cv2
import numpy as np
import pytest
from support.synthetic import default_params, planted
from support.videos import hopper

import jclnf
from jclnf.cli import _bench, main


@pytest.fixture
def short(monkeypatch):
    """Each figure from a few fits; processes that do nothing."""
    monkeypatch.setattr(_bench, "SECONDS", 1e-3)
    monkeypatch.setattr(_bench, "BATCHES", ((2,), (2,)))
    monkeypatch.setattr(_bench, "_FIRST", "pass")


@pytest.mark.usefixtures("short")
def test_figures_are_printed_and_written(tmp_path, capsys):
    model, image = tmp_path / "planted.safetensors", tmp_path / "face.png"
    one_scale = default_params(windows=(0, 7), iterations=2)
    jclnf.save_model(dataclasses.replace(planted().model, defaults=one_scale), model)
    cv2.imwrite(str(image), hopper())
    out = tmp_path / "bench.json"
    words = ["bench", "--model", str(model), "--image", str(image), "--out", str(out), "--quiet"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    record = json.loads(out.read_text())
    assert record["format"] == "jclnf-bench/1"
    assert record["machine"]["jclnf"] == jclnf.__version__
    assert record["machine"]["cores"] >= 1
    rows = record["rows"]
    assert [row["what"] for row in rows][2:] == [
        "one face",
        "batch of 2",
        "video of 640x480, one face",
    ]
    assert [row["faces"] for row in rows] == [1, 1, 1, 2, 1]
    for row, line in zip(rows, printed[2:], strict=True):
        assert row["milliseconds"] > 0
        assert row["milliseconds"] * row["per_second"] == pytest.approx(1000)
        assert line.startswith(row["what"])
        assert float(line.split()[-2]) == pytest.approx(row["milliseconds"], abs=0.006)


def test_an_image_without_a_face_is_named(tmp_path, capsys):
    image = tmp_path / "grey.png"
    cv2.imwrite(str(image), np.full((64, 64), 128, np.uint8))
    assert main(["bench", "--image", str(image), "--quiet"]) == 2
    assert "grey.png: no face was found in it" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_a_process_that_fails_ends_it(monkeypatch, tmp_path, capsys):
    image, out = tmp_path / "face.png", tmp_path / "bench.json"
    cv2.imwrite(str(image), hopper())
    monkeypatch.setattr(_bench, "_FIRST", "raise SystemExit('no room')")
    assert main(["bench", "--image", str(image), "--out", str(out), "--quiet"]) == 2
    assert "no room" in capsys.readouterr().err
    assert not out.exists()
