"""`jclnf video --aus`: a table's action units, and that a run that was killed ends in the same."""

import csv
import dataclasses
import json

import cv2
import numpy as np
import pytest
from support.action_unit_files import write_predictors
from support.openface_files import random_model, write_model
from support.videos import frames, write_video

import jclnf
from jclnf.action_units import (
    Described,
    FrameUnits,
    People,
    Person,
    describe_openface,
    finish,
    load_action_units,
)
from jclnf.cli import main
from jclnf.openface import OpenFaceTable
from jclnf.video import Settings, open_source
from jclnf.video._faces import RECORD, DescriptorFile, write_face
from jclnf.video._job import process_video
from jclnf.video._run import Run
from jclnf.video._units import KeptUnits, UnitsFile

COUNT = 40
COLUMNS = ["AU01_r", "AU12_r", "AU01_c", "AU12_c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_predictors(tmp_path_factory.mktemp("aus") / "AU_predictors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A face that is there from the fourth frame on, and gone for a while in between."""
    made = frames(COUNT)
    for k in (0, 1, 2, *range(20, 25)):
        made[k][:] = 90
    return str(write_video(tmp_path_factory.mktemp("clip") / "face.avi", made))


@pytest.fixture(scope="module")
def settings(folder, tmp_path_factory):
    """Those of a model with random experts, whose fits of one iteration stay near."""
    made = random_model(1, landmarks=68, modes=3, scalings=(0.25,), views=1)
    place = tmp_path_factory.mktemp("model")
    boxes = place / "boxes.csv"
    boxes.write_text("frame,x,y,w,h\n4,72,46,95,100\n")
    options = {"iterations": 1, "boxes": str(boxes), "plot": False, "full_precision": True}
    units = {"aus": True, "au_models": str(folder), "hog": True, "masked": True}
    return Settings(model=str(write_model(place / "m", made)), one=True, **options, **units)


@pytest.fixture(scope="module")
def model(settings):
    return jclnf.load_openface(settings.model)


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(settings, model, clip, tmp_path_factory):
    """The results of a run that nothing disturbed, and what its table was before it ended."""
    out = tmp_path_factory.mktemp("whole")
    done = process_video(settings, model, clip, out, "face")
    assert not done.problems
    return out


def test_the_table_ends_in_the_final_action_units(whole, clip, folder):
    rows = table_of(whole / "face.csv")
    assert list(rows[0])[-4:] == COLUMNS
    predictors = load_action_units(folder)
    person, units, seen, described = Person(predictors), [], [], []
    for frame, row in zip(open_source(clip).frames(), rows, strict=True):
        face = None
        if row["success"] == "1":
            points = np.array([[float(row[f"{axis}_{i}"]) for axis in "xy"] for i in range(68)])
            face = describe_openface(predictors, frame.image, points)
        descriptor = None if face is None else face.descriptor
        described.append(face)
        seen.append(face is not None)
        units.append(person.step(descriptor))
    assert 10 < sum(seen) < COUNT
    kept, kinds = (np.array([getattr(u, name) for u in units]) for name in ("kept", "kind"))
    final = finish(predictors, kept, kinds, person.of_median)
    record = np.dtype([("size", "<i4", (3,)), ("good", "<f4"), ("values", "<f4", (4464,))])
    hog = np.fromfile(whole / "face.hog", record)
    assert hog.nbytes == COUNT * 17872
    np.testing.assert_array_equal(hog["size"], [(12, 12, 31)] * COUNT)
    np.testing.assert_array_equal(hog["good"], np.where(seen, 1, -1))
    for number, (one, hidden) in enumerate(zip(described, hog["values"], strict=True), 1):
        image = cv2.imread(str(whole / "face_masked" / f"frame_det_00_{number:06d}.bmp"))
        expected = np.zeros((112, 112, 3)) if one is None else one.aligned
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(hidden, 0 if one is None else one.appearance.reshape(-1))
    for row, one, expected in zip(rows, seen, final, strict=True):
        found = [row[name] for name in COLUMNS]
        if one:
            np.testing.assert_allclose([float(cell) for cell in found], expected, atol=1e-8)
        else:
            assert found == [""] * 4
    about = json.loads((whole / "face.json").read_text())
    assert about["action_units"] == "dynamic_svms"
    names = sorted(path.name for path in whole.iterdir())
    assert names == ["face.csv", "face.hog", "face.json", "face_masked"]


def test_as_openface_fills_it_frames_without_a_face_have_action_units_too(
    settings, model, clip, whole, tmp_path
):
    """Averages over frames reach into those where the face was not seen."""
    asked = dataclasses.replace(settings, openface_csv=True, arithmetic="exact")
    assert not process_video(asked, model, clip, tmp_path, "face").problems
    rows, before = table_of(tmp_path / "face.csv"), table_of(whole / "face.csv")
    for row, other in zip(rows, before, strict=True):
        if other["success"] == "1":
            assert [row[name] for name in COLUMNS] == [other[name] for name in COLUMNS]
        else:
            assert all(row[name] for name in COLUMNS)
    intensities = np.array([[float(row[name]) for name in COLUMNS[:2]] for row in rows])
    assert intensities[2].any(), "next to the first frame with a face"
    assert not intensities[:2].any()


@pytest.mark.parametrize(
    ("openface_csv", "asked", "used"),
    [(False, None, None), (True, None, "openface"), (True, "exact", "exact")],
)
def test_openfaces_table_is_of_openfaces_arithmetic(
    settings, model, clip, tmp_path, openface_csv, asked, used
):
    """Unless another one is asked for."""
    asked = dataclasses.replace(settings, openface_csv=openface_csv, arithmetic=asked)
    assert Run(asked, model, open_source(clip), tmp_path, "face").settings.arithmetic == used


def test_frames_without_a_row_count_all_the_same(settings, model, clip, whole, tmp_path):
    asked = dataclasses.replace(settings, empty_rows=False)
    assert not process_video(asked, model, clip, tmp_path, "face").problems
    rows = {row["frame"]: row for row in table_of(tmp_path / "face.csv")}
    before = table_of(whole / "face.csv")
    assert len(rows) < len(before)
    assert all(rows.get(row["frame"], row) == row for row in before)


def undisturbed(path):
    files = [path / "face.csv", path / "face.hog", *sorted((path / "face_masked").iterdir())]
    return [(file.name, file.read_bytes()) for file in files]


@pytest.mark.parametrize("moment", ["frame", "rewriting", "rewritten"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    settings, model, clip, whole, tmp_path, monkeypatch, moment
):
    """In the middle of the video, while the final action units are written, and just after."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def on_frame(frame, _):
        if moment == "frame" and frame.number == 36:
            killed()
        return True

    with monkeypatch.context() as patched:
        if moment == "rewriting":
            lines = iter(range(10))
            real = OpenFaceTable.with_units
            patched.setattr(
                OpenFaceTable,
                "with_units",
                lambda *given: real(*given) if next(lines, None) is not None else killed(),
            )
        if moment == "rewritten":
            patched.setattr(Run, "put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            process_video(settings, model, clip, tmp_path, "face", every=0.0, on_frame=on_frame)
    assert (tmp_path / ".face.units").exists()
    done = process_video(settings, model, clip, tmp_path, "face", resume=True)
    assert not done.problems
    assert undisturbed(tmp_path) == undisturbed(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_what_is_kept_of_rows_that_were_lost_is_left_out(folder, tmp_path):
    """Rows after the last checkpoint come again."""
    predictors = load_action_units(folder)
    people, nothing = People(predictors), KeptUnits(0, None, has_row=True)
    file = UnitsFile(tmp_path, "a", people)
    file.open(0)
    file.append([nothing] * 3)
    offset = file.sync()
    file.append([nothing] * 5)
    file.sync()
    again = UnitsFile(tmp_path, "a", people)
    again.open(offset)
    assert again.sync() == offset
    again.remove()
    assert not list(tmp_path.iterdir())


def test_options_that_need_action_units(clip, tmp_path, capfd, settings):
    given = ["video", clip, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*given, "--hog"]) == 2
    assert "hog: there are no action units without aus" in capfd.readouterr().err
    assert main([*given, "--au-static"]) == 2
    assert "au_static: there are no action units without aus" in capfd.readouterr().err
    assert main([*given, "--aus"]) == 1
    error = capfd.readouterr().err
    assert "action units need landmarks as OpenFace's detectors place them" in error
    nowhere = ["--no-parts", "--no-validator", "--aus", "--au-models", str(tmp_path)]
    assert main([*given, "--model", settings.model, *nowhere]) == 1
    assert "holds no main_dynamic_svms.txt" in capfd.readouterr().err


def test_files_of_descriptors_and_faces_are_openfaces(shared, tmp_path):
    recorded = shared / "openface" / "au"
    if not recorded.is_dir():
        pytest.skip(f"needs recordings of action units, not at {shared}")
    stages = np.load(recorded / "stages_dyn_default.npz")
    expected = (recorded / "default_first20.hog").read_bytes()
    early = np.flatnonzero(stages["frame_index0"] < 20)
    assert len(early)
    for i in early:
        appearance = stages["hog"][i].reshape(12, 12, 31)
        face = Described(stages["aligned_au"][i], appearance, stages["geom"][i])
        units = FrameUnits(*[np.zeros(35)] * 2, 1, face)
        frame = int(stages["frame_index0"][i]) + 1
        file = DescriptorFile(tmp_path / "one.hog", 0)
        file.append(units)
        file.close()
        start = (frame - 1) * RECORD.itemsize
        written = (tmp_path / "one.hog").read_bytes()
        assert written == expected[start : start + RECORD.itemsize]
        write_face(tmp_path, frame, 0, units)
        name = f"frame_det_00_{frame:06d}.bmp"
        assert (tmp_path / name).read_bytes() == (recorded / "aligned" / name).read_bytes()
