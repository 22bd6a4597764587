import csv
from types import SimpleNamespace

import numpy as np
import pytest

from jclnf.annotations import BoxTable, FrameBoxTable
from jclnf.annotations import face_columns as columns
from jclnf.cli._face_table import FaceTable
from jclnf.errors import BoxError, OutputError
from jclnf.fitting import FitStatus


def result(n=3, m=2, seed=0, status=FitStatus.CONVERGED, confidence=None):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        landmarks=rng.uniform(-100, 3000, (n, 2)).astype(np.float32),
        shape=rng.normal(0, 10, m).astype(np.float32),
        pose=SimpleNamespace(
            scale=np.float32(1.25),
            rotation=rng.normal(0, 1, 3).astype(np.float32),
            translation=rng.uniform(0, 1000, 2).astype(np.float32),
        ),
        likelihood=np.float32(-1.5),
        status=np.int32(status),
        confidence=confidence,
        success=np.bool_(status == FitStatus.CONVERGED),
    )


def read(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_row_holds_the_result(tmp_path):
    face = result(confidence=np.float32(0.875))
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        table.write("a.jpg", 1, (1, 2.5, 30, 40), face)
        assert table.rows == 1
    (row,) = read(tmp_path / "a.csv")
    assert list(row) == columns(3, 2)
    assert (row["image"], row["face"], row["status"]) == ("a.jpg", "1", "converged")
    numbers = {key: float(value) for key, value in row.items() if key not in ("image", "status")}
    assert [numbers[f"box_{k}"] for k in "xywh"] == [1, 2.5, 30, 40]
    for i in range(3):
        assert (numbers[f"x_{i}"], numbers[f"y_{i}"]) == pytest.approx(face.landmarks[i], abs=1e-4)
    assert [numbers[f"p_{i}"] for i in range(2)] == pytest.approx(face.shape, abs=1e-6)
    pose = face.pose
    assert [numbers[k] for k in ("weak_pitch", "weak_yaw", "weak_roll")] == pytest.approx(
        pose.rotation, abs=1e-6
    )
    assert [numbers[k] for k in ("tx", "ty")] == pytest.approx(pose.translation, abs=1e-4)
    assert (numbers["scale"], numbers["likelihood"]) == (1.25, -1.5)
    assert (numbers["confidence"], row["success"]) == (0.875, "1")


def test_every_row_is_on_disk_at_once(tmp_path):
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        for face in range(3):
            table.write("a.jpg", face, (1, 2, 3, 4), result(seed=face))
            text = (tmp_path / "a.csv").read_text()
            assert len(text.splitlines()) == face + 2
            assert text.endswith("\n")


@pytest.mark.parametrize("cut", [0, 1, 7, 40])
def test_a_table_goes_on_with_the_images_that_are_whole(tmp_path, cut):
    """Whatever is left of the last image's rows, they are written anew."""
    path, faces = tmp_path / "a.csv", [("new\nline.jpg", 0), ("b.jpg", 0), ("b.jpg", 1)]

    def write(table, some):
        for image, face in some:
            status = FitStatus.CONVERGED if face == 0 else FitStatus.NOT_FINITE
            table.write(image, face, (1, 2, 3, 4), result(seed=face, status=status))

    with FaceTable(path, 3, 2) as table:
        write(table, faces)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    with FaceTable(path, 3, 2, resume="started") as table:
        assert (table.done, table.rows, table.failed) == ({"new\nline.jpg"}, 1, 0)
        write(table, faces[1:])
        assert (table.rows, table.failed) == (3, 1)
    assert path.read_bytes() == whole
    assert FaceTable(path, 3, 2, resume="complete").done == {"new\nline.jpg", "b.jpg"}
    with pytest.raises(OutputError, match="other columns"):
        FaceTable(path, 4, 2, resume="started")


def test_failed_fit_has_empty_fields(tmp_path):
    face = result(status=FitStatus.NOT_FINITE)
    face.landmarks[1] = np.nan
    face.shape[0] = np.inf
    face.likelihood = np.float32(np.nan)
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        table.write("a.jpg", 0, (1, 2, 3, 4), face)
    (row,) = read(tmp_path / "a.csv")
    assert (row["status"], row["success"]) == ("not_finite", "0")
    kept = ["image", "face", "status", "success", "box_x", "box_y", "box_w", "box_h"]
    assert [k for k, v in row.items() if v != ""] == kept


def test_fit_that_is_not_trusted_has_its_confidence_and_nothing_of_a_face(tmp_path):
    face = result(confidence=np.float32(0.25))
    face.success = np.bool_(False)
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        table.write("a.jpg", 0, (1, 2, 3, 4), face)
    (row,) = read(tmp_path / "a.csv")
    assert (row["status"], row["likelihood"], row["confidence"]) == (
        "converged",
        "-1.500000",
        "0.250000",
    )
    assert {row[name] for name in columns(3, 2)[10:]} == {""}


def test_an_image_without_a_face_is_a_row(tmp_path):
    """But no table of such rows alone takes the place of another."""
    path = tmp_path / "a.csv"
    with FaceTable(path, 3, 2) as table:
        table.write_without_face("none.jpg")
    assert [row["image"] for row in read(path)] == ["none.jpg"]
    with FaceTable(path, 3, 2) as table:
        table.write_without_face("b.jpg")
        table.write("a.jpg", 0, (1, 2, 3, 4), result())
        table.write_without_face("c,d.jpg")
        assert table.rows == 1
    before, face, after = read(path)
    assert [row["image"] for row in (before, face, after)] == ["b.jpg", "a.jpg", "c,d.jpg"]
    known = {name: text for name, text in after.items() if text}
    assert known == {"image": "c,d.jpg", "status": "no_face", "success": "0"}
    assert BoxTable(path).boxes("b.jpg") == []
    assert BoxTable(path).boxes("a.jpg") == [[1, 2, 3, 4]]
    text = path.read_text()
    with FaceTable(path, 3, 2) as table:
        table.write_without_face("e.jpg")
    assert path.read_text() == text


def test_no_negative_zero(tmp_path):
    face = result()
    face.shape[:] = (-0.0, -1e-9)
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        table.write("a.jpg", 0, (-0.0, 2, 3, 4), face)
    (row,) = read(tmp_path / "a.csv")
    assert (row["p_0"], row["p_1"], row["box_x"]) == ("0.000000", "0.000000", "0.0000")


@pytest.mark.parametrize(
    "name", ["a,b.jpg", 'quo"te.jpg', "new\nline.jpg", "写真.jpg", "\udcff.jpg"]
)
def test_any_file_name(tmp_path, name):
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        table.write(name, 0, (1, 2, 3, 4), result())
    assert [row["image"] for row in read(tmp_path / "a.csv")] == [name]


def test_another_model_is_refused(tmp_path):
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        for face in (result(n=4), result(m=3)):
            with pytest.raises(ValueError, match="in a table of 3 and 2"):
                table.write("a.jpg", 0, (1, 2, 3, 4), face)


def boxes(tmp_path, text):
    path = tmp_path / "boxes.csv"
    path.write_bytes(text.encode())
    return BoxTable(path)


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_boxes_by_image(tmp_path, start, end):
    lines = ["source, image, x, y, w, h", "s,a.jpg,1,2,3,4", "s,d/b.jpg,5,6,7,8", "s,a.jpg,9,9,9,9"]
    table = boxes(tmp_path, start + end.join(lines) + end)
    assert table.boxes("some/folder/a.jpg") == [[1, 2, 3, 4], [9, 9, 9, 9]]
    assert table.boxes("a.jpg") == [[1, 2, 3, 4], [9, 9, 9, 9]]
    assert table.boxes("c/d/b.jpg") == [[5, 6, 7, 8]]
    assert table.boxes("b.jpg") == []
    assert table.boxes("aa.jpg") == []


def test_longest_match_counts(tmp_path):
    table = boxes(tmp_path, "image,x,y,w,h\na.jpg,1,1,1,1\nd/a.jpg,2,2,2,2\n")
    assert table.boxes("d/a.jpg") == [[2, 2, 2, 2]]
    assert table.boxes("e/a.jpg") == [[1, 1, 1, 1]]


def test_own_table_serves_as_boxes(tmp_path):
    with FaceTable(tmp_path / "a.csv", 3, 2) as table:
        table.write("d/写 真.jpg", 0, (1, 2.25, 3, 4), result())
    assert BoxTable(tmp_path / "a.csv").boxes("d/写 真.jpg") == [[1, 2.25, 3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header"),
        ("image,x,y\na.jpg,1,2\n", "header"),
        ("x,y,w,h\n1,2,3,4\n", "header"),
        ("a.jpg,1,2,3,4\n", "header"),
        ("image,x,y,w,h\na.jpg,1,2,3\n", "line 2: x, y, w, h must be numbers"),
        ("image,x,y,w,h\na.jpg,1,2,3,4\na.jpg,1,nan,3,4\n", "line 3: x, y, w, h must be numbers"),
        ("image,x,y,w,h\n\na.jpg,1,2,3,\n", "line 3: x, y, w, h must be numbers"),
        ("image,x,y,w,h\n,1,2,3,4\n", "line 2: no image"),
        ('image,x,y,w,h\n"a' + "x" * 200_000 + '",1,2,3,4\n', "not a CSV file"),
    ],
)
def test_bad_boxes_file(tmp_path, text, message):
    with pytest.raises(BoxError, match=f"boxes.csv.*{message}"):
        boxes(tmp_path, text)


def test_boxes_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(BoxError, match="cannot be read"):
            BoxTable(path)


def frame_boxes(tmp_path, text):
    path = tmp_path / "starts.csv"
    path.write_bytes(text.encode())
    return FrameBoxTable(path)


def test_boxes_by_video_and_frame(tmp_path):
    lines = ["video,frame,x,y,w,h,confidence"]
    lines += ["a.mp4,7,1,2,3,4,1", "d/b.mp4,1,5,6,7,8,1", "a.mp4,2,9,9,9,9,1", "a.mp4,7,5,5,5,5,1"]
    table = frame_boxes(tmp_path, "\n".join(lines))
    expected = {2: [[9, 9, 9, 9]], 7: [[1, 2, 3, 4], [5, 5, 5, 5]]}
    assert table.boxes("clips/a.mp4") == expected
    assert list(table.boxes("a.mp4")) == [2, 7]
    assert table.boxes("c/d/b.mp4") == {1: [[5, 6, 7, 8]]}
    assert table.boxes("b.mp4") == {}


def test_boxes_of_frames_of_any_video(tmp_path):
    table = frame_boxes(tmp_path, "frame,x,y,w,h\n3,1,2,3,4\n")
    assert table.boxes("a.mp4") == {3: [[1, 2, 3, 4]]}
    table = frame_boxes(tmp_path, "frame,video,x,y,w,h\n3,,1,2,3,4\n3,a.mp4,5,5,5,5\n")
    assert table.boxes("a.mp4") == {3: [[5, 5, 5, 5], [1, 2, 3, 4]]}
    assert table.boxes("a.mp4") == {3: [[5, 5, 5, 5], [1, 2, 3, 4]]}
    assert table.boxes("b.mp4") == {3: [[1, 2, 3, 4]]}
    assert table.left_out(["a.mp4"]) == []
    (line,) = table.left_out(["b.mp4"])
    assert line.endswith("starts.csv: its rows for 1 other videos are not used: a.mp4")


def test_rows_for_other_images_are_named(tmp_path):
    table = boxes(tmp_path, "image,x,y,w,h\n" + "".join(f"d/{k}.jpg,1,1,1,1\n" for k in range(7)))
    (line,) = table.left_out(["c/d/0.jpg", "1.jpg"])
    assert "6 other images" in line
    assert line.endswith("not used: d/1.jpg, d/2.jpg, d/3.jpg, d/4.jpg and 2 more")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header line with the columns frame"),
        ("video,x,y,w,h\na.mp4,1,2,3,4\n", "header line with the columns frame"),
        ("frame,x,y,w,h\n1,1,2,3\n", "line 2: x, y, w, h must be numbers"),
        ("frame,x,y,w,h\n1,1,2,inf,4\n", "line 2: x, y, w, h must be numbers"),
        *(
            (f"frame,x,y,w,h\n{frame},1,2,3,4\n", "line 2: frame must be a whole number from 1")
            for frame in ("0", "-1", "1.5", "", "two", "9" * 5000)
        ),
    ],
)
def test_bad_file_of_frames(tmp_path, text, message):
    with pytest.raises(BoxError, match=f"starts.csv.*{message}"):
        frame_boxes(tmp_path, text)
