import csv
import dataclasses
import json
import os
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.synthetic import planted

import jclnf
import jclnf.cli._eval
import jclnf.evaluation
from jclnf.annotations import AnnotatedFace
from jclnf.cli import main
from jclnf.errors import AnnotationError, BoxError
from jclnf.evaluation import NOT_READ, Evaluation, evaluate
from jclnf.evaluation._evaluate import yaws
from jclnf.evaluation._metrics import box_size
from jclnf.fitting import FitStatus
from jclnf.geometry import Pose, project, tight_box
from jclnf.openface import ROTATIONS
from jclnf.runtime import use_all_cores

SHIFTS = ((0, 0), (9, 4), (-6, 12))


@pytest.fixture(scope="module")
def face():
    """Its model fits at the second scale alone, of which half as much is compiled."""
    case = planted(views=1)
    defaults = case.model.defaults.replace(windows=(0, 7))
    return case._replace(model=dataclasses.replace(case.model, defaults=defaults))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, face):
    """The planted face moved to three places; its annotation, off by up to a pixel; its model."""
    path = tmp_path_factory.mktemp("data")
    (path / "images").mkdir()
    jclnf.save_model(face.model, path / "planted.safetensors")
    rng = np.random.default_rng(5)
    n = face.model.pdm.n_landmarks
    with open(path / "landmarks.csv", "w", newline="") as file:
        writer = csv.writer(file)
        names = [f"{axis}_{i}" for i in range(n) for axis in "xy"]
        writer.writerow(["image", "identity", "split", *names])
        for i, shift in enumerate(SHIFTS):
            moved = np.roll(face.image, shift[::-1], (0, 1))
            cv2.imwrite(str(path / "images" / f"{i}.png"), np.rint(moved).astype(np.uint8))
            points = face.landmarks + shift + rng.uniform(-1, 1, (n, 2))
            split = "val" if i else "train"
            writer.writerow([f"{i}.png", f"person {i}", split, *np.round(points, 3).ravel()])
    return path


@pytest.fixture(autouse=True)
def _workplace(tmp_path_factory, tmp_path, monkeypatch):
    """Run in an empty folder, with a cache of the test's own and the old settings of JAX after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def run(folder, capfd):
    """Return a function that runs `jclnf eval` with the planted model: (code, stdout, stderr)."""

    def call(*arguments, model="planted.safetensors", data=folder, starts=("--starts", "1")):
        path = str(folder / model) if model.endswith(".safetensors") else model
        code = main(["eval", path, str(data), *starts, *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def rows(path="eval/errors.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summary(path="eval/summary.json"):
    with open(path) as file:
        return json.load(file)


def boxes_csv(tmp_path, *lines):
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x,y,w,h", *lines]) + "\n")
    return "boxes.csv"


def test_errors_are_those_of_the_fits(run, folder, face):
    code, out, err = run()
    assert (code, err) == (0, "")
    faces = jclnf.annotations.read_annotations(folder)
    errors = []
    for row, annotated in zip(rows(), faces, strict=True):
        box = tight_box(annotated.landmarks)
        piece = jclnf.crop(jclnf.images._read.read_image(annotated.image), box)
        result = jclnf.fit(face.model, piece.image, piece.box)
        fitted = np.asarray(result.landmarks) + piece.offset
        distances = np.linalg.norm(fitted - annotated.landmarks, axis=1)
        errors.append(100 * distances.mean() / (box[2] * box[3]) ** 0.5)
        assert float(row["nme_all_box"]) == pytest.approx(errors[-1], abs=2e-3)
        assert row["image"] == str(annotated.image)
        assert row["status"] == FitStatus(int(result.status)).name.lower()
        assert float(row["likelihood"]) == pytest.approx(float(result.likelihood), abs=1e-3)
        np.testing.assert_allclose([float(row[f"box_{k}"]) for k in "xywh"], box, atol=1e-4)
        # The annotation is noisy, and so is the yaw of the shape fitted to it.
        yaw = np.rad2deg(float(face.pose.rotation[1]))
        assert float(row["weak_yaw_degrees"]) == pytest.approx(yaw, abs=3)
    assert max(errors) < 2  # the noise of the annotation
    found = summary()
    assert found["measures"]["all_box"]["mean"] == pytest.approx(np.mean(errors), abs=2e-3)
    assert found["start boxes"] == "extent of the true landmarks (3 faces)"
    assert sum(found["status"].values()) == 3
    assert f"| all, box size | 3     | 0          | {np.mean(errors):.2f} " in out
    assert "start boxes: extent of the true landmarks (3 faces)" in out
    with open("eval/curve.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_boxes(run, face, tmp_path):
    x, y, w, h = face.box
    table = boxes_csv(tmp_path, *(f"{i}.png,{x + a},{y + b},{w},{h}" for i, (a, b) in
                                  enumerate(SHIFTS) if i != 1))  # fmt: skip
    code, out, err = run("--boxes", table, "--out", "there", "--quiet")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "1.png: there is no box for it" in err
    first, second, third = rows("there/errors.csv")
    assert (second["status"], second["nme_all_box"], second["box_x"]) == ("not_read", "", "")
    assert float(third["box_x"]) == pytest.approx(x + SHIFTS[2][0], abs=1e-3)
    found = summary("there/summary.json")["measures"]["all_box"]
    assert (found["faces"], found["not_fitted"], found["over_10"]) == (3, 1, 0.3333333333333333)
    mean = (float(first["nme_all_box"]) + float(third["nme_all_box"])) / 2
    assert found["mean"] == pytest.approx(mean, abs=1e-4)
    assert found["p90"] is None  # infinitely wrong, as a third of the faces is


def test_an_image_that_cannot_be_read(run, folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "landmarks.csv").write_bytes((folder / "landmarks.csv").read_bytes())
    for i in range(3):
        image = (folder / "images" / f"{i}.png").read_bytes()
        (data / f"{i}.png").write_bytes(image[:900] if i == 1 else image)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(data=data)
    assert code == 1
    read, drawn = err.splitlines()
    assert "1.png: the file is truncated" in read
    assert "pip install 'jclnf[plots]'" in drawn
    assert [row["status"] == "not_read" for row in rows()] == [False, True, False]
    assert summary()["status"]["not_read"] == 1
    assert "| all, box size | 3     | 1          |" in out
    assert not (tmp_path / "eval" / "curve.png").exists()


def test_the_model_that_comes_with_jclnf(run, folder, tmp_path, monkeypatch):
    bundled = tmp_path / "default.safetensors"
    bundled.write_bytes((folder / "planted.safetensors").read_bytes())
    monkeypatch.setattr(jclnf.files._find, "bundled_models", lambda: [bundled])
    assert run(model="default")[0] == 0
    assert summary()["model"] == "default"


def test_what_ends_it_at_once(run, folder, tmp_path):
    def refused(*arguments, **options):
        code, out, err = run(*arguments, **options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    assert "no such file or folder" in refused(data=tmp_path / "no")
    assert "no faces of the split 'test'" in refused("--split", "test")
    assert "no such file" in refused(model="no.safetensors")
    (tmp_path / "file").write_text("")
    assert "file: cannot be written" in refused("--out", "file")
    assert "cannot be read" in refused("--boxes", "no.csv")
    twice = boxes_csv(tmp_path, "0.png,1,1,50,50", "0.png,2,2,50,50")
    assert "2 boxes of" in refused("--boxes", twice)
    assert "windows" in refused("--windows", "1,1")

    (tmp_path / "few.csv").write_text(
        f"image,x_0,y_0,x_1,y_1\n{folder / 'images' / '0.png'},1,2,30,40\n"
    )
    err = refused(data=tmp_path / "few.csv")
    assert "the model planted has 20 landmarks, the annotation 2 in" in err
    assert [path.name for path in (tmp_path / "eval").iterdir()] == [".jclnf.json"]


def some_fits(b, n=68):
    """An evaluation of `n` landmarks whose last face was not fitted; errors of 1 px."""
    truth = np.random.default_rng(0).uniform(50, 150, (b, n, 2))
    found = truth + [0.6, 0.8]
    found[-1] = np.nan
    status = np.array([0] * (b - 1) + [NOT_READ])
    return Evaluation(found, truth, status, status.astype(float), np.zeros(b), {b - 1: "gone"})


@pytest.mark.parametrize(
    ("options", "own", "rotations"),
    [
        (("--starts", "1"), 11, 1),
        (("--starts", "11"), 1, 11),
        ((), 11, 11),
        ((), 1, 1),
    ],
)
def test_starts_and_settings(run, face, monkeypatch, options, own, rotations):
    """And what is written of 68 landmarks."""
    asked = {}

    def stub(_, faces, params, **others):
        asked.update(others, params=params)
        return some_fits(b=len(faces))

    starts = ROTATIONS if own == 11 else None
    model = dataclasses.replace(face.model, defaults=face.model.defaults.replace(rotations=starts))
    monkeypatch.setattr(jclnf.cli._eval, "evaluate", stub)
    monkeypatch.setattr(jclnf, "load_model", lambda _: model)
    settings = ("--arithmetic", "openface", "--iterations", "3", "--split", "val")
    code, out, _ = run(*settings, starts=options)
    assert code == 1
    # None means the model's own start.
    given = asked["params"].rotations
    assert (given is None) == (rotations == 1)
    assert given is None or given.shape == (rotations, 3)
    assert asked["params"].iterations == 3
    assert asked["params"].arithmetic.early_stop
    found = summary()
    assert found["starts"] == rotations
    assert set(found["groups"]) == {"jaw", "brows", "nose", "eyes", "mouth"}
    assert found["yaw"]["0-15"]["not_fitted"] == 1
    assert "| inner 51, eye distance, offsets removed | 2     | 1          |" in out
    fits = some_fits(b=2)
    eyes = np.linalg.norm(fits.truth[:, 36] - fits.truth[:, 45], axis=1)
    first, last = rows()
    assert float(first["nme_inner_eye"]) == pytest.approx(100 / eyes[0], abs=1e-3)
    assert (last["nme_inner_eye"], last["status"]) == ("", "not_read")


def test_chunks_change_nothing(folder, face, monkeypatch):
    """Also the last one, which is filled up, and where images are missing."""
    faces = jclnf.annotations.read_annotations(folder)
    at_once = evaluate(face.model, faces)
    assert at_once.problems == {}
    assert at_once.summary().measures["all_box"].faces == 3
    monkeypatch.setattr(jclnf.evaluation._evaluate, "CHUNK", 2)
    done, told = [], []
    broken = AnnotatedFace(folder / "no.png", faces[0].landmarks)
    in_two = evaluate(
        face.model,
        [*faces, broken],
        on_progress=done.append,
        on_problem=lambda index, text: told.append((index, text)),
    )
    assert done == [2, 2]
    ((index, text),) = told
    assert index == 3
    assert "no.png: no such file" in text
    assert in_two.problems == {3: text}
    assert in_two.status[3] == NOT_READ
    assert np.isnan(in_two.landmarks[3]).all()
    np.testing.assert_allclose(in_two.landmarks[:3], at_once.landmarks, atol=2e-3)
    np.testing.assert_array_equal(in_two.status[:3], at_once.status)
    np.testing.assert_allclose(in_two.yaw[:3], at_once.yaw, atol=1e-5)


def test_own_box_and_own_reader(folder, face):
    (annotated,) = jclnf.annotations.read_annotations(folder, split="train")
    image = jclnf.images._read.read_image(annotated.image)
    box = tight_box(annotated.landmarks) + [3, -2, 1, 4]
    boxed = AnnotatedFace(folder / "not there", annotated.landmarks, box=box)
    piece = jclnf.crop(image, box)
    expected = np.asarray(jclnf.fit(face.model, piece.image, piece.box).landmarks) + piece.offset
    found = evaluate(face.model, [boxed], read=lambda _: image)
    np.testing.assert_allclose(found.landmarks[0], expected, atol=2e-3)


def test_refuses_what_does_not_belong_together(folder, face):
    faces = jclnf.annotations.read_annotations(folder)
    with pytest.raises(AnnotationError, match="no faces"):
        evaluate(face.model, [])
    with pytest.raises(BoxError, match="1 boxes for 3 faces"):
        evaluate(face.model, faces, boxes=[face.box])
    bad = evaluate(face.model, faces[:1], boxes=[(0, 0, -1, 5)])
    assert "0.png: box" in bad.problems[0]


def test_yaw_of_given_landmarks(face):
    turns = np.array([-0.5, 0.0, 0.3])
    points = [
        project(
            face.model.pdm,
            Pose.from_euler(jnp.float32(1.2), jnp.array([0.1, turn, 0.05]), jnp.zeros(2)),
            jnp.zeros(face.model.pdm.n_modes),
        )
        for turn in turns
    ]
    np.testing.assert_allclose(yaws(face.model.pdm, np.stack(points)), turns, atol=0.02)
    assert box_size(np.stack(points)).min() > 50


def test_cores_become_devices(monkeypatch):
    """Unless the user has said how many, or JAX is running: then it says so itself."""
    told = []
    monkeypatch.setattr(jax.config, "update", lambda *setting: told.append(setting))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(40)), raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    use_all_cores(32)
    use_all_cores(64)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    use_all_cores(32)
    assert told == [("jax_num_cpu_devices", 32), ("jax_num_cpu_devices", 40)]
    monkeypatch.undo()
    devices = jax.local_device_count()
    use_all_cores(devices + 1)
    assert jax.local_device_count() == devices
