import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image
from support.action_unit_files import write_predictors
from support.openface_files import random_model, write_model

import jclnf
import jclnf.cli._fit
import jclnf.images
from jclnf.action_units import describe_openface, load_action_units
from jclnf.cli import main
from jclnf.cli._commands import Fit
from jclnf.fitting import FitStatus
from jclnf.outputs import claim, locked
from jclnf.runtime import enable_compilation_cache, silent_stderr

SCALE = 0.9  # so that all crops are of one size, and the fit is compiled once


@pytest.fixture(scope="module")
def astronaut():
    """A public-domain portrait, around the face: `(270, 270, 3)` BGR."""
    part = np.ascontiguousarray(skimage.data.astronaut()[:300, 80:380, ::-1])
    return cv2.resize(part, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def box():
    """The face's box in it."""
    return ("92", "79", "77", "75")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model in OpenFace's format with random experts: one iteration with it stays near."""
    made = random_model(1, landmarks=68, modes=3, scalings=(0.25,), views=1)
    return str(write_model(tmp_path_factory.mktemp("model"), made))


@pytest.fixture(autouse=True)
def _workplace(tmp_path_factory, tmp_path, monkeypatch):
    """Run in an empty folder, with a cache of the test's own and the old settings of JAX after."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
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
def run(model, capfd):
    """Return a function that runs `jclnf fit` with the random model: (code, stdout, stderr)."""

    def call(*arguments, quick=("--model", model, "--starts", "1", "--iterations", "1")):
        code = main(["fit", *map(str, arguments), *quick])
        return code, *capfd.readouterr()

    return call


def rows(path="fits/landmarks.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def points(row):
    return np.array([(float(row[f"x_{i}"]), float(row[f"y_{i}"])) for i in range(68)])


def test_fits_the_face(run, astronaut, model):
    cv2.imwrite("a.png", astronaut)
    code, out, err = run("a.png")
    assert (code, err) == (0, "")
    # Nothing is said of a fit that is good.
    assert "a.png: face 0: weak-perspective pitch " in out
    assert "1 face in fits/landmarks.csv" in out
    (row,) = rows()
    assert (row["image"], row["face"]) == ("a.png", "0")

    # The numbers are those of the library, and in the frame of the whole image.
    grey = cv2.cvtColor(astronaut, cv2.COLOR_BGR2GRAY)
    box = np.array([float(row[f"box_{k}"]) for k in "xywh"])
    tight = (89, 79, 84, 82)  # around the landmarks that the bundled model has in this image
    np.testing.assert_allclose(box, tight, atol=8)  # a tenth of the side: most boxes are nearer
    loaded = jclnf.load_model(model)
    params = loaded.defaults.replace(iterations=1, rotations=None)
    result = jclnf.fit(loaded, grey, box, params)
    assert row["status"] == FitStatus(int(result.status)).name.lower()
    np.testing.assert_allclose(points(row), result.landmarks, atol=2e-3)
    assert float(row["scale"]) == pytest.approx(float(result.pose.scale), abs=1e-4)
    degrees = np.rad2deg(np.asarray(result.pose.rotation))
    angles = "pitch {:.1f}, yaw {:.1f}, roll {:.1f} degrees".format(*degrees)
    assert f"weak-perspective {angles}" in out

    # The overlay is the image, drawn on around the face.
    drawn = cv2.imread("fits/a_overlay.png")
    changed = np.any(drawn != astronaut, axis=2)
    assert changed[70:160, 85:180].mean() > 0.02
    assert not changed[:20].any()


@pytest.mark.slow
def test_landmarks_lie_on_the_face_and_confidence_tells_it_from_other_things(shared, run):
    cv2.imwrite("a.png", skimage.data.astronaut()[..., ::-1])
    main_file = shared / "openface" / "model" / "main_clnf_general.txt"
    # Both are cropped to one size, and so compiled once.
    Path("boxes.csv").write_text("image,x,y,w,h\na.png,183,88,84,84\na.png,380,300,84,84\n")
    options = ("--boxes", "boxes.csv", "--validator", "--no-overlay", "--starts", "1")
    code, out, err = run("a.png", *options, quick=("--model", str(main_file)))
    assert (code, err) == (1, "")
    face, other = rows()
    assert (face["success"], other["success"]) == ("1", "0")
    assert float(face["confidence"]) > 0.9 > 0.5 > float(other["confidence"])
    assert f"confidence {float(face['confidence']):.3f}" in out
    found = points(face)
    # Read off the whole image: outer eye corners, tip of the nose, corners of the mouth, chin.
    expected = {
        36: (192, 100.5),
        45: (258, 103.5),
        30: (224, 126),
        48: (203, 140),
        54: (244, 140.5),
        8: (226, 177),
    }
    for i, at in expected.items():
        assert np.linalg.norm(found[i] - at) < 6, i
    assert abs(float(face["weak_yaw"])) < 0.2


def test_exif_orientation(run, astronaut, box):
    Image.fromarray(astronaut[..., ::-1]).save("upright.png")
    exif = Image.Exif()
    exif[0x112] = 6
    turned = Image.fromarray(astronaut[..., ::-1]).transpose(Image.Transpose.ROTATE_90)
    turned.save("turned.png", exif=exif)
    Path("boxes.csv").write_text(
        "image,x,y,w,h\n" + "".join(f"{n}.png,{','.join(box)}\n" for n in ("upright", "turned"))
    )
    assert run("upright.png", "turned.png", "--boxes", "boxes.csv")[0] == 0
    upright, turned = rows()
    np.testing.assert_array_equal(points(upright), points(turned))
    np.testing.assert_array_equal(
        *(cv2.imread(f"fits/{name}_overlay.png") for name in ("upright", "turned"))
    )


def test_one_bad_image_does_not_stop_the_others(run, astronaut):
    cv2.imwrite("a.png", astronaut)
    cv2.imwrite("c.png", astronaut)
    cv2.imwrite("flat.png", np.full((90, 90), 7, np.uint8))
    Path("b.jpg").write_bytes(cv2.imencode(".jpg", astronaut)[1].tobytes()[:3000])
    Path("text.png").write_text("hello")
    code, out, err = run("a.png", "b.jpg", "missing.jpg", "text.png", "flat.png", "c.png")
    assert code == 1
    assert [row["image"] for row in rows()] == ["a.png", "flat.png", "c.png"]
    assert [row["status"] == "no_face" for row in rows()] == [False, True, False]
    lines = err.splitlines()
    names = ("b.jpg", "missing.jpg", "text.png", "flat.png")
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"jclnf: {name}: ")
    assert "no face found; if there is one, give its box as --box X,Y,W,H, or" in lines[-1]
    for line in (lines[0], lines[2]):
        assert line.endswith(": copy it again, or export it as PNG or JPEG")
    assert "2 faces in" in out


def test_only_bad_images(run, astronaut):
    """Only what is wrong with them is said."""
    Path("text.jpg").write_text("hello")
    cv2.imwrite("a.png", astronaut)
    for given, says in (
        (("missing.jpg",), "missing.jpg: no such file"),
        (("text.jpg",), "text.jpg: not an image that OpenCV can read, or a damaged one: copy it"),
        (("a.png", "--box", "900,900,50,50"), "its centre is outside the image"),
    ):
        for _ in ("without earlier results", "with"):
            code, out, err = run(*given, "--out", "other")
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert says in err
            assert rows("other/landmarks.csv") == []
    Path("empty").mkdir()
    code, _, err = run("empty")
    assert (code, err) == (1, "jclnf: empty: no images in this folder\n")
    assert not Path("fits").exists()


def test_box_option(run, astronaut):
    cv2.imwrite("a.png", astronaut)
    # A box beyond the border, so its numbers are negative.
    code, _, err = run("a.png", "--box", "-20.5", "-18", "78", "80")
    assert (code, err) == (0, "")
    (row,) = rows()
    assert [float(row[f"box_{k}"]) for k in "xywh"] == [-20.5, -18, 78, 80]
    for given in (
        ("--box=-20.5,-18,78,80",),
        ("--box", "-20.5,-18,78,80"),
        ("--box", "-20.5 -18 78 80"),
        ("--box", "-20.5,", "-18,", "78,", "80"),
        ("--box", "-20.5", ",-18", ",", "78 80"),
    ):
        assert run(*given, "a.png")[0] == 0
        assert rows() == [row]
    code, _, err = run("a.png", "--box", "0", "0", "0", "9")
    assert code == 1
    assert err.startswith("jclnf: a.png: face 0: box ")
    assert rows() == [row]  # a run that fits nothing leaves what was there
    code, _, err = run("a.png", "b.png", "--box", "0", "0", "50", "50")
    assert code == 2
    assert "--boxes" in err


def test_boxes_option(run, astronaut):
    cv2.imwrite("a.png", astronaut)
    cv2.imwrite("b.png", astronaut)
    Path("boxes.csv").write_text(
        "image,x,y,w,h\na.png,92,79,77,75\na.png,90,81,72,72\na.png,900,900,50,50\n"
    )
    code, _, err = run("a.png", "b.png", "--boxes", "boxes.csv")
    assert code == 1
    found = [(row["image"], row["face"]) for row in rows()]
    assert found == [("a.png", "0"), ("a.png", "1"), ("b.png", "")]
    assert run("a.png", "b.png", "--boxes", "boxes.csv", "--no-empty-rows")[0] == 1
    assert [(row["image"], row["face"]) for row in rows()] == found[:2]
    first, second = err.splitlines()
    assert first.startswith("jclnf: a.png: face 2: box x=900")
    assert second == "jclnf: b.png: no box for it in boxes.csv"
    Path("bad.csv").write_text("hello")
    code, _, err = run("a.png", "--boxes", "bad.csv")
    assert code == 2
    assert err.startswith("jclnf: bad.csv: needs a header")


def test_all_faces_or_the_largest(run, astronaut):
    face = astronaut[30:210, 45:225]
    image = np.full((220, 380, 3), 128, np.uint8)
    image[20:164, 20:164] = cv2.resize(face, (144, 144), interpolation=cv2.INTER_AREA)
    image[20:200, 180:360] = face
    cv2.imwrite("two.png", image)
    assert run("two.png")[0] == 0
    first, second = rows()
    assert (first["face"], second["face"]) == ("0", "1")
    assert float(first["box_x"]) > 180 > float(second["box_x"])
    assert run("two.png", "--one")[0] == 0
    assert [row["box_x"] for row in rows()] == [first["box_x"]]


def test_folders_and_names_of_overlays(run, astronaut, box):
    for folder in ("in", "in/deeper", "other"):
        Path(folder).mkdir()
    for name in ("in/b.png", "in/a.PNG", "in/a.jpg", "in/.hidden.png", "in/deeper/x.png"):
        Path(name).write_bytes(cv2.imencode(".png", astronaut)[1].tobytes())
    cv2.imwrite("other/A.png", astronaut)
    Path("in/notes.txt").write_text("not an image")
    lines = [f"{name},{','.join(box)}" for name in ("b.png", "a.PNG", "a.jpg", "A.png", "x.png")]
    lines.append(f"c.png,{','.join(box)}")
    Path("boxes.csv").write_text("\n".join(["image,x,y,w,h", *lines]))
    # The same image twice, once by its folder, is one image.
    code, _, err = run("in", "other/A.png", "in/b.png", "--boxes", "boxes.csv", "--out", "out")
    lines = ["in: 1 left out (no images: notes.txt)"]
    lines += ["boxes.csv: its rows for 1 other images are not used: c.png"]
    assert (code, err) == (0, "".join(f"jclnf: {line}\n" for line in lines))
    found = [row["image"] for row in rows("out/landmarks.csv")]
    assert found == ["in/a.PNG", "in/a.jpg", "in/b.png", "in/deeper/x.png", "other/A.png"]
    assert sorted(os.listdir("out")) == [
        ".jclnf.json",
        "A_3_overlay.png",
        "a_2_overlay.png",
        "a_overlay.png",
        "b_overlay.png",
        "landmarks.csv",
        "landmarks.json",
        "x_overlay.png",
    ]


def test_overlays_beside_the_images(run, astronaut, box):
    """Written into the folder of the images, they are not images of the next run."""
    Path("in").mkdir()
    cv2.imwrite("in/a.png", astronaut)
    Path("boxes.csv").write_text("image,x,y,w,h\na.png," + ",".join(box))
    names = [".jclnf.json", "a.png", "a_overlay.png", "landmarks.csv", "landmarks.json"]
    says = ""
    for _ in range(2):
        code, _, err = run("in", "--boxes", "boxes.csv", "--out", "in")
        assert (code, err, sorted(os.listdir("in"))) == (0, says, names)
        says = "jclnf: in: 1 left out (written by jclnf: a_overlay.png)\n"
    # Nor from the folder above, which holds no others.
    assert run(".", "--boxes", "boxes.csv", "--out", "up", "--quiet")[0] == 0
    assert [row["image"] for row in rows("up/landmarks.csv")] == ["in/a.png"]
    # Asked for by name it is an image, and stays as it is.
    before = Path("in/a_overlay.png").read_bytes()
    assert run("in/a_overlay.png", "in/a.png", "--box", *box, "--out", "in")[0] == 2
    Path("boxes.csv").write_text("image,x,y,w,h\n" + "".join(
        f"{name},{','.join(box)}\n" for name in ("a.png", "a_overlay.png")
    ))  # fmt: skip
    assert run("in/a_overlay.png", "in/a.png", "--boxes", "boxes.csv", "--out", "in")[0] == 0
    assert Path("in/a_overlay.png").read_bytes() == before
    assert Path("in/a_2_overlay.png").exists()


def test_quiet_without_overlay(run, astronaut, box):
    cv2.imwrite("süß 写真.png", astronaut)
    assert run("süß 写真.png", "--box", *box, "--quiet", "--no-overlay") == (0, "", "")
    assert sorted(os.listdir("fits")) == [".jclnf.json", "landmarks.csv", "landmarks.json"]
    assert rows()[0]["image"] == "süß 写真.png"


def test_failed_fit_is_a_row_and_exit_code_1(run, astronaut, box, monkeypatch):
    fit = jclnf.fit

    def diverge(*args):
        result = fit(*args)
        result = jax.tree.map(lambda a: a * np.nan if a.dtype.kind == "f" else a, result)
        return dataclasses.replace(result, status=jax.numpy.int32(FitStatus.NOT_FINITE))

    monkeypatch.setattr(jclnf, "fit", diverge)
    cv2.imwrite("a.png", astronaut)
    code, out, _ = run("a.png", "--box", *box)
    assert code == 1
    assert "a.png: face 0: " in out
    (row,) = rows()
    assert row["x_0"] == row["likelihood"] == ""
    assert Path("fits/a_overlay.png").exists()


def test_a_detector_of_the_users_own(run, astronaut, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    cv2.imwrite("a.png", astronaut)
    cv2.imwrite("b.png", np.zeros_like(astronaut))
    Path("colourful_faces.py").write_text(
        "class Find:\n"
        "    wants_colour = True\n"
        "    def __call__(self, image):\n"
        "        blue, _, red = image.mean(axis=(0, 1))\n"
        "        return [(92, 79, 77, 75 if red > blue else 1)] if red else [(1, 2, 0, 0)]\n"
    )
    code, _, err = run("a.png", "b.png", "--detector", "colourful_faces:Find")
    assert code == 1
    row, nobody = rows()
    assert [float(row[f"box_{side}"]) for side in "xywh"] == [92, 79, 77, 75]
    assert (nobody["image"], nobody["status"]) == ("b.png", "no_face")
    (line,) = err.splitlines()
    assert line.startswith("jclnf: b.png: colourful_faces:Find: returned the box 1, 2, 0, 0 with")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "missing.txt"), "missing.txt"),
        (("--detector", "eyes"), "'eyes' is no detector; there are jclnf"),
        (("--detector", "mtcnn:lost"), "lost"),
        (("--model", "a.png"), "a.png"),
        (("--iterations", "0"), "iterations"),
        (("--windows", "11,9"), "windows"),
        (("--windows", "eleven"), "whole numbers"),
        (("--starts", "5"), "--starts"),
        (("--arithmetic", "other"), "--arithmetic"),
        (("--box", "1", "2", "3"), "--box takes four numbers"),
        (("--box", "1,2,3,x"), "not '1,2,3,x'"),
        (("--one", "--boxes", "b.csv"), "not allowed"),
        (("--boxes", "missing.csv"), "missing.csv"),
        (("--out", "a.png"), "a.png: cannot be written"),
        (("--focal=-500",), "must be positive"),
        (("--focal", "1,2,3"), "--focal takes one or two numbers"),
        (("--centre", "1"), "--centre takes two numbers"),
        (("--focal", "far"), "'far'"),
        (("--full-precision",), "--openface-csv"),
        (("--csv-spaces",), "--openface-csv"),
        (("--nonsense",), "--nonsense"),
        (("--overlya",), "jclnf fit has no option --overlya; did you mean --no-overlay?"),
        (("--no-overlya",), "no option --no-overlya; did you mean --no-overlay?"),
        (("--arithmetic", "exat"), "'exat' is not one of exact, openface; did you mean exact?"),
        (("--detector", "harr"), "did you mean haar?"),
        (("--model", "defualt"), "did you mean default?"),
        (("--box", "1,2,3,nan"), "--box takes four numbers"),
        (("--windows", "11,,9"), "whole numbers"),
        (("--device", "gpuu"), "cpu, gpu or the number of a GPU, not 'gpuu'"),
    ],
)
def test_what_ends_the_command_at_once(astronaut, model, capfd, arguments, message):
    cv2.imwrite("a.png", astronaut)
    before = Path("a.png").read_bytes()
    assert main(["fit", "a.png", "--model", model, *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("jclnf: ")
    assert err.count("\n") == 1
    assert Path("a.png").read_bytes() == before
    assert not Path("fits").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt", "a.png"], "'fitt' is not one of models, fit, video, eval, train, tune, bench"),
        (["fitt", "a.png"], "did you mean fit?"),
        (["models", "instal"], "did you mean install?"),
        (
            ["video", "a.mp4", "--resme"],
            "jclnf video has no option --resme; did you mean --resume?",
        ),
        (["video", "a.mp4", "--form", "3"], "no option --form; did you mean --from?"),
        (["video", "a.mp4", "--from", "nan"], "argument --from: invalid number value: 'nan'"),
        (["models", "info", "default", "clnf"], "'clnf' is one argument too many"),
    ],
)
def test_typing_errors_cost_a_line_with_the_nearest_name(capfd, words, message):
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    "words",
    [
        "fit {}",
        "video {}",
        "fit x.jpg --model {}",
        "models info {}",
        "train {} --out m.safetensors",
    ],
)
def test_a_name_that_no_file_can_have_is_no_file(capfd, words):
    name = 300 * "n"
    assert main(words.format(name).split()) in (1, 2)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert name in err


def test_a_path_with_a_typing_error_is_told_its_nearest(run, astronaut, capfd):
    Path("photos").mkdir()
    cv2.imwrite("photos/portrait.png", astronaut)
    _, _, err = run("photos/potrait.png", "photo/portrait.png", "s3://bucket/photos")
    elsewhere, near, folder = err.splitlines()
    assert near.endswith("photos/potrait.png: no such file; did you mean portrait.png?")
    assert folder.endswith("no such file; there is no folder photo; did you mean photos?")
    assert elsewhere.endswith(
        "s3://bucket/photos: no path on this machine; with --ray, s3:// and the like are read"
    )
    Path("boxes.csv").write_text("image,x,y,w,h\n")
    assert main(["fit", "photos", "--boxes", "boxs.csv"]) == 2
    assert "did you mean boxes.csv?" in capfd.readouterr().err
    Path("photos/portrait.pts").write_text("")
    assert main(["eval", "default", "photos/portrat.png"]) == 2
    assert "did you mean portrait.pts?" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("fit result", ""),
        ("fit result/a.png", ""),
        ("fit landmark.csv", ""),
        ("fit photo", "photos"),
        ("fit photo/a.png", "photos"),
        ("fit portrait.pn", "portrait.png"),
        ("video result", ""),
        ("video photo", "photos"),
        ("video portrait.pn", ""),
        ("eval default result", ""),
        ("eval default photo", ""),
        ("eval default annotatd", "annotated"),
        ("train result --out m.safetensors", ""),
        ("tune result --out m.safetensors", ""),
        ("fit portrait.png --boxes result", ""),
        ("fit portrait.png --boxes results/landmark.csv", "landmarks.csv"),
        ("bench --image result", ""),
    ],
)
def test_what_could_not_be_meant_is_not_suggested(model, astronaut, capfd, words, near):
    """A folder of results, or what the command does not read."""
    for folder in ("photos", "results", "annotated"):
        Path(folder).mkdir()
    claim("results", "fit", fixed=("landmarks.csv", "a_overlay.png"))
    for name in ("portrait.png", "photos/a.png", "results/a_overlay.png"):
        cv2.imwrite(name, astronaut)
    for name in ("annotated/a.pts", "results/landmarks.csv"):
        Path(name).touch()
    more = ("--model", model, "--starts", "1") if words.startswith("fit") else ()
    assert main([*words.split(), *more]) in (1, 2)
    (line,) = capfd.readouterr().err.splitlines()
    assert "no " in line
    assert line.partition("did you mean ")[2] == (near and f"{near}?")


def test_settings_reach_the_fit(run, astronaut, box, model, monkeypatch):
    seen = []
    fit = jclnf.fit

    def watch(loaded, image, box, params):
        """Fits as all other tests do: each of these settings would be compiled anew."""
        seen.append(params)
        return fit(loaded, image, box, loaded.defaults.replace(iterations=1, rotations=None))

    monkeypatch.setattr(jclnf, "fit", watch)
    cv2.imwrite("a.png", astronaut)
    code, _, err = run("a.png", "--box", *box, "--arithmetic", "openface", "--windows", "9")
    assert (code, err) == (0, "")
    (params,) = seen
    assert params.windows == (9,)
    assert params.iterations == 1
    assert params.arithmetic.early_stop

    # OpenFace's table is that of OpenFace's settings, as far as options do not say otherwise.
    for options, starts, stops in (((), 11, False), (("--openface-csv",), 1, True)):
        given = ("--model", model, "--iterations", "1", "--no-overlay")
        assert run("a.png", "--box", *box, *options, quick=given)[0] == 0
        assert seen[-1].rotations.shape == (starts, 3)
        assert seen[-1].arithmetic.early_stop == stops
    exact = ("--openface-csv", "--arithmetic", "exact")
    assert run("a.png", "--box", *box, *exact, quick=given)[0] == 0
    assert not seen[-1].arithmetic.early_stop


def openface_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def test_openfaces_tables(run, astronaut, box):
    """A table an image, in the camera's frame, and nothing that was there is overwritten."""
    for folder in ("in", "other"):
        Path(folder).mkdir()
    for name in ("in/landmarks.png", "in/boxes.png", "other/boxes.png"):
        cv2.imwrite(name, astronaut)
    line = ",".join(box)
    boxes = f"image,x,y,w,h\nlandmarks.png,{line}\nboxes.png,{line}\nboxes.png,90,81,72,72\n"
    Path("in/boxes.csv").write_text(boxes)
    options = ("--boxes", "in/boxes.csv", "--out", "in", "--no-overlay", "--openface-csv")
    code, out, err = run("in", "other", *options, "--focal", "600", "630", "--centre", "140,130")
    assert (code, err) == (0, "jclnf: in: 1 left out (no images: boxes.csv)\n")
    assert Path("in/boxes.csv").read_text() == boxes
    tables = {name: openface_rows(f"in/{name}.csv") for name in ("boxes_2", "boxes_3")}
    (only,) = openface_rows("in/landmarks_2.csv")
    assert [len(table) for table in tables.values()] == [2, 2]
    assert [row["face"] for row in tables["boxes_2"]] == ["0", "1"]
    assert only["confidence"] == "1.000"
    assert not any(name.startswith(("gaze", "AU")) for name in only)

    # Its numbers are those of the other table, and space is as the camera has it.
    full = next(row for row in rows("in/landmarks.csv") if row["image"] == "in/landmarks.png")
    for ours, theirs in (
        ("x_30", "x_30"),
        ("y_8", "y_8"),
        ("scale", "p_scale"),
        ("weak_yaw", "p_ry"),
    ):
        assert float(only[theirs]) == pytest.approx(float(full[ours]), abs=0.0501)
    x, z = float(only["X_30"]), float(only["Z_30"])
    assert 600 * x / z + 140 == pytest.approx(float(full["x_30"]), abs=0.2)
    assert 630 * float(only["Y_30"]) / z + 130 == pytest.approx(float(full["y_30"]), abs=0.2)
    place = "at ({:.0f}, {:.0f}, {:.0f}) mm".format(*(float(only[f"pose_T{a}"]) for a in "xyz"))
    said = next(line for line in out.splitlines() if line.startswith("in/landmarks.png"))
    assert place in said
    pitch = float(re.search(r"head in the camera's frame: pitch (\S+),", said)[1])
    assert "weak-perspective" not in said
    assert pitch == pytest.approx(np.rad2deg(float(only["pose_Rx"])), abs=0.1)

    options = ("--box", *box, "--out", "full", "--openface-csv", "--full-precision", "--no-overlay")
    assert run("in/landmarks.png", *options)[0] == 0
    (exact,) = openface_rows("full/landmarks_2.csv")
    assert float(exact["x_30"]) == pytest.approx(float(full["x_30"]), abs=6e-5)
    assert float(exact["x_30"]) != float(only["x_30"])


def test_openfaces_table_of_a_failed_fit(run, astronaut, box, monkeypatch):
    fit = jclnf.fit

    def diverge(*args):
        result = jax.tree.map(lambda a: a * np.nan if a.dtype.kind == "f" else a, fit(*args))
        return dataclasses.replace(result, status=jax.numpy.int32(FitStatus.NOT_FINITE))

    monkeypatch.setattr(jclnf, "fit", diverge)
    cv2.imwrite("a.png", astronaut)
    assert run("a.png", "--box", *box, "--no-overlay", "--openface-csv")[0] == 1
    (row,) = openface_rows("fits/a.csv")
    assert {float(value) for value in row.values()} == {0.0}


@pytest.mark.parametrize("option", ["parts", "validator"])
def test_parts_and_validator_are_openfaces(run, astronaut, option):
    cv2.imwrite("a.png", astronaut)
    code, out, err = run("a.png", f"--{option}", quick=("--model", "default"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"the model has no {option}: give one of OpenFace's" in err


def test_interrupt_keeps_the_rows(run, astronaut, monkeypatch):
    cv2.imwrite("a.png", astronaut)
    cv2.imwrite("b.png", astronaut)
    read = jclnf.images._read.read_image_file

    def interrupt(path):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(jclnf.cli._fit, "read_image_file", interrupt)
    code, out, err = run("a.png", "b.png")
    assert (code, err) == (130, f"jclnf: interrupted: {Fit.interrupted}\n")
    assert "face in fits" not in out
    assert [row["image"] for row in rows()] == ["a.png"]


def test_an_interrupt_that_python_ignores_is_noticed(run, astronaut, monkeypatch, request):
    """One that arrives in a destructor, of which Python only prints what is raised."""
    for name in "abc":
        cv2.imwrite(f"{name}.png", astronaut)
    read = jclnf.images._read.read_image_file
    ignored = []

    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def interrupt(path):
        if path.name == "b.png":
            Interrupted()
        return read(path)

    # Programs that are begun in the background may have it ignored.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, outside))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda what: ignored.append(what.exc_type))
        patch.setattr(jclnf.cli._fit, "read_image_file", interrupt)
        code, _, err = run("a.png", "b.png", "c.png")
    assert (code, err) == (130, f"jclnf: interrupted: {Fit.interrupted}\n")
    assert ignored == [KeyboardInterrupt]
    assert [row["image"] for row in rows()] == ["a.png", "b.png"]
    # The next run knows nothing of it.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run("c.png", "--out", "other")[0] == 0


def test_a_second_run_into_the_same_folder_stops_and_names_the_first(run, astronaut, box):
    cv2.imwrite("a.png", astronaut)
    assert run("a.png", "--box", *box, "--no-overlay")[0] == 0
    before = rows()
    with locked("fits/landmarks.csv"):
        code, _, err = run("a.png", "--box", *box, "--no-overlay")
    assert (code, rows()) == (2, before)
    assert err.startswith(
        f"jclnf: fits/landmarks.csv: is being written by process {os.getpid()} on "
    )


def without(rows, *names):
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def test_a_run_that_was_ended_goes_on(run, astronaut, box, monkeypatch):
    """Over the results of an earlier one, which stay until it is complete."""
    Path("in").mkdir()
    for name in "abcd":
        cv2.imwrite(f"in/{name}.png", astronaut)
    options = ("in", "--boxes", "boxes.csv")
    Path("boxes.csv").write_text("image,x,y,w,h\n" + "".join(
        f"{name}.png,{','.join(box)}\n{name}.png,90,81,72,72\n" for name in "abcd"
    ))  # fmt: skip
    assert run(*options)[0] == 0
    before = {path.name: path.read_bytes() for path in Path("fits").iterdir()}
    monkeypatch.chdir("in")  # named from elsewhere, images are the same
    assert run("..", "--boxes", "../boxes.csv", "--out", "../fits", "--resume")[0] == 0
    monkeypatch.chdir("..")
    after = {path.name: path.read_bytes() for path in Path("fits").iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["landmarks.json"]

    fit, count = jclnf.fit, 0

    def interrupt(*given):
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return fit(*given)

    shifted = ("in", "--boxes", "others.csv")
    Path("others.csv").write_text(Path("boxes.csv").read_text().replace("72,72", "70,70"))
    assert run(*shifted, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(jclnf, "fit", interrupt)
        count = 5
        assert run(*shifted)[0] == 130
        # Before its first row: the table that is there is none of its own.
        count = 0
        assert run(*shifted, "--resume")[0] == 130
    found = {path.name: path.read_bytes() for path in Path("fits").iterdir()}
    assert {name: found[name] for name in after} == after
    code, _, err = run(*options, "--resume")
    assert (code, rows()) == (2, rows())
    assert "something else has changed: the boxes: give the same" in err
    code, _, err = run(*shifted, "--no-overlay", "--resume")
    assert code == 2
    assert "--no-overlay (not given there, given now)" in err

    count = 10
    assert run(*shifted, "--resume")[0] == 0
    assert sorted(before) == sorted(path.name for path in Path("fits").iterdir())
    assert rows() == rows("whole/landmarks.csv")
    assert [row["box_w"] for row in rows()] == ["77.0000", "70.0000"] * 4
    for name in "abcd":
        drawn = f"{name}_overlay.png"
        assert Path("fits", drawn).read_bytes() == Path("whole", drawn).read_bytes()


def test_images_that_have_come_since_are_added(run, astronaut):
    Path("in").mkdir()
    cv2.imwrite("in/b.png", astronaut)
    assert run("in", "--no-overlay")[0] == 0
    (first,) = rows()
    cv2.imwrite("in/a.png", astronaut)
    code, out, _ = run("in", "--no-overlay", "--resume")
    assert (code, out.splitlines()[-1]) == (0, "2 faces in fits/landmarks.csv, 1 of them before")
    assert rows()[0] == first
    assert without(rows()[1:], "image") == without([first], "image")
    # What went wrong before still has.
    cv2.imwrite("in/c.png", np.zeros_like(astronaut))
    for says in ("c.png: no face found", "1 of its rows of before are without success"):
        code, _, err = run("in", "--no-overlay", "--resume")
        assert (code, err.count("\n"), len(rows())) == (1, 1, 3)
        assert says in err


def test_nothing_of_before_is_lost(run, astronaut):
    """A misspelt path, an image without a face, boxes or annotations where results would go."""
    cv2.imwrite("a.png", astronaut)
    cv2.imwrite("empty.png", np.zeros_like(astronaut))
    assert run("a.png")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("fits").iterdir()}

    def now():
        return {path.name: path.read_bytes() for path in Path("fits").iterdir()}

    for given in (("mispelt.jpg",), ("empty.png",), ("a.png", "--box", "900,900,50,50")):
        code, out, _ = run(*given, "--openface-csv" if given[0] == "empty.png" else "--quiet")
        assert code == 1
        assert {name: now().get(name) for name in before if name != ".jclnf.json"} == {
            name: data for name, data in before.items() if name != ".jclnf.json"
        }
        if out:
            assert out == "no face: fits/landmarks.csv is left as it was\n"
    code, _, err = run("a.png", "--boxes", "fits/landmarks.csv")
    assert (code, now()["landmarks.csv"]) == (2, before["landmarks.csv"])
    assert "fits/landmarks.csv: is read by this run, and is kept: name another folder" in err
    Path("faces").mkdir()
    Path("faces/landmarks.csv").write_text("image,x_0,y_0\na.png,1,2\n")
    code, _, err = run("a.png", "--out", "faces")
    assert code == 2
    assert "faces/landmarks.csv: was not written by jclnf fit, and is kept" in err


def test_contents_tell_images_and_what_is_left_out_is_named(run, astronaut, monkeypatch):
    Path("in/deep").mkdir(parents=True)
    jpeg = cv2.imencode(".jpg", astronaut)[1].tobytes()
    for name in ("a.jfif", "noending", "deep/x.txt"):
        Path("in", name).write_bytes(jpeg)
    Path("in/IMG.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Path("in/clip.bin").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(99))
    Path("in/notes.jpg.txt").write_text("no image")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    code, _, err = run("in", "--no-overlay")
    assert code == 1
    assert [row["image"] for row in rows()] == ["in/a.jfif", "in/deep/x.txt", "in/noending"]
    left, heic = err.splitlines()
    assert left == "jclnf: in: 2 left out (no images: notes.jpg.txt; videos: clip.bin)"
    assert heic.startswith("jclnf: in/IMG.HEIC: is a HEIC image, which needs pillow-heif: pip ")


def test_full_disk(run, astronaut, box, monkeypatch):
    cv2.imwrite("a.png", astronaut)

    replace, full = Path.replace, ".png"

    def unless_full(part, path):
        if path.suffix == full:
            raise OSError(28, "No space left on device")
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", unless_full)
    code, _, err = run("a.png", "--box", *box)
    assert code == 1
    assert err == "jclnf: fits/a_overlay.png: cannot be written: No space left on device\n"
    full = ".csv"
    code, _, err = run("a.png", "--box", *box)
    assert code == 2
    assert "landmarks.part.csv: cannot be written: No space left on device\n" in err
    assert len(rows()) == 1


def test_help_and_version(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"jclnf {jclnf.__version__}\n"
    assert main(["--help"]) == 0
    assert "fit" in capfd.readouterr().out
    assert main(["fit", "--help"]) == 0
    text = capfd.readouterr().out
    for part in ("exit code:", "examples:", "landmarks.csv", "--boxes", "upright"):
        assert part in text
    assert main([]) == 2
    assert "COMMAND" in capfd.readouterr().err


def process(*arguments, **options):
    # A shell has jobs in the background ignore Ctrl-C, and what they start as well.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from jclnf.cli import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=options.pop("cwd", None),
        env={**os.environ, "PYTHONPATH": str(Path(jclnf.__file__).parents[1])},
        text=True,
        **options,
    )


def test_help_into_a_closed_pipe_and_without_heavy_modules():
    reading, writing = os.pipe()
    os.close(reading)
    with process("fit", "--help", stdout=writing, stderr=subprocess.PIPE) as p:
        os.close(writing)
        _, err = p.communicate(timeout=60)
    assert err == ""
    assert p.returncode in (0, 1)  # whether argparse or we meet the closed pipe
    code = (
        "import sys, jclnf.cli\n"
        "for command in ('fit', 'video', 'eval', 'train', 'tune', 'bench', 'models'):\n"
        "    assert jclnf.cli.main([command, '--help']) == 0\n"
        "assert not {'jax', 'numpy', 'cv2', 'matplotlib'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(jclnf.__file__).parents[1])}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends a Unix signal")
def test_real_interrupt(tmp_path, astronaut, model):
    """Ctrl-C between the faces of a long run: exit code 130, whole rows, no traceback."""
    names = [f"{i:04}.png" for i in range(4000)]
    cv2.imwrite(names[0], astronaut)
    for name in names[1:]:
        os.link(names[0], name)
    Path("boxes.csv").write_text(
        "image,x,y,w,h\n" + "".join(f"{name},92,79,77,75\n" for name in names)
    )
    arguments = ("--boxes", "boxes.csv", "--starts", "1", "--iterations", "1", "--model", model)
    with process(
        "fit",
        ".",
        *arguments,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as p:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and p.poll() is None:
            if Path("fits/landmarks.csv").exists() and len(rows()) >= 2:
                break
            time.sleep(0.05)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    # Between them Python may say that it ignored one in a callback.
    assert "Traceback" not in err or "Exception ignored" in err
    assert [err.splitlines()[0], err.splitlines()[-1]] == [
        "jclnf: .: 1 left out (no images: boxes.csv)",
        f"jclnf: interrupted: {Fit.interrupted}",
    ]
    found = rows()
    assert 2 <= len(found) < len(names)
    assert all(row["p_2"] for row in found)


def test_compilation_cache_folder(tmp_path, monkeypatch):
    set_to = lambda: jax.config.jax_compilation_cache_dir  # noqa: E731
    for name in ("MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES"):
        monkeypatch.delenv(f"JAX_PERSISTENT_CACHE_{name}", raising=False)
    assert enable_compilation_cache(tmp_path / "a" / "b") == str(tmp_path / "a" / "b") == set_to()
    assert (tmp_path / "a" / "b").is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0

    # What JAX is set to already (as by its environment variable) stays.
    assert enable_compilation_cache() == str(tmp_path / "a" / "b") == set_to()

    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = enable_compilation_cache()
    assert folder == set_to()
    assert Path(folder).parent == tmp_path / "xdg" / "jclnf" / "jax"

    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", "nul\0"):
        assert enable_compilation_cache(bad) is None
        assert set_to() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert enable_compilation_cache() is None


def test_silent_stderr(capfd):
    with silent_stderr():
        os.write(2, b"noise")
    os.write(2, b"word")
    assert capfd.readouterr().err == "word"


def test_action_units_are_in_both_tables(run, astronaut, box, tmp_path):
    """Those of the fitted landmarks, by the predictors for photographs."""
    folder = write_predictors(tmp_path / "AU_predictors")
    cv2.imwrite("a.png", astronaut)
    options = ("--box", *box, "--no-overlay", "--openface-csv", "--aus")
    code, _, err = run("a.png", *options, "--au-models", folder, "--out", "full")
    assert code == 0, err
    (row,), (table,) = rows("full/landmarks.csv"), rows("full/a.csv")
    predictors = load_action_units(folder, static=True)
    described = describe_openface(predictors, astronaut, points(row))
    expected = predictors.shown(predictors.predict(described.descriptor))
    assert list(row)[-4:] == list(table)[-4:] == ["AU01_r", "AU12_r", "AU01_c", "AU12_c"]
    # The table's landmarks are rounded.
    np.testing.assert_allclose([float(row[n]) for n in list(row)[-4:]], expected, atol=0.02)
    for name in list(row)[-4:]:
        assert table[name] == f"{float(row[name]):.{1 if name.endswith('_c') else 2}f}"
    code, _, err = run("a.png", *options, "--au-models", tmp_path / "nothing")
    assert code == 2
    assert "nothing: no such file" in err
    code, _, err = run("a.png", "--au-models", folder)
    assert (code, "--au-models is for --aus" in err) == (2, True)
    code, _, err = run("a.png", *options, quick=())
    assert code == 2
    assert "action units need landmarks as OpenFace's detectors place them" in err
