import csv
import random
from pathlib import Path

import numpy as np
import pytest

import jclnf
from jclnf.annotations import AnnotatedFace, read_annotations, split_by_identity
from jclnf.errors import AnnotationError

N = 5


@pytest.fixture
def landmarks(rng):
    """Three faces, to a hundredth of a pixel."""
    return np.round(rng.uniform(1, 90, (3, N, 2)), 2)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not decoded here")


def write_csv(path, faces, *, images=("a.jpg", "b.jpg", "c.jpg"), **columns):
    """`columns` are further ones, with a value for each face."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        n = len(faces[0])
        writer.writerow(["image", *columns, *(f"{axis}_{i}" for i in range(n) for axis in "xy")])
        for i, (image, points) in enumerate(zip(images, faces, strict=False)):
            writer.writerow([image, *(c[i] for c in columns.values()), *np.ravel(points)])
    return path


def pts(points):
    """The text of a .pts file of 0-based points."""
    lines = [f"{x + 1:.2f} {y + 1:.2f}" for x, y in points]
    return "\n".join(["version: 1", f"n_points:  {len(points)}", "{", *lines, "}", ""])


def xml_box(points, box=(8, 9, 70, 80), extra=""):
    left, top, width, height = box
    parts = "".join(f"<part name='{i:02}' x='{x}' y='{y}'/>" for i, (x, y) in enumerate(points))
    return f"<box top='{top}' left='{left}' width='{width}' height='{height}'{extra}>{parts}</box>"


def xml(*images):
    body = "".join(f"<image file='{name}'>{''.join(boxes)}</image>" for name, *boxes in images)
    return (
        "<?xml version='1.0' encoding='ISO-8859-1'?>\n"
        "<?xml-stylesheet type='text/xsl' href='image_metadata_stylesheet.xsl'?>\n"
        f"<dataset>\n<name>faces</name>\n<images>\n{body}\n</images>\n</dataset>\n"
    )


def test_the_same_faces_in_three_formats(tmp_path, landmarks):
    touch(*(tmp_path / kind / f"{s}.jpg" for kind in ("table", "pts", "xml") for s in "abc"))
    write_csv(tmp_path / "table" / "landmarks.csv", landmarks)
    for stem, points in zip("abc", landmarks, strict=True):
        (tmp_path / "pts" / f"{stem}.pts").write_text(pts(points))
    boxes = [(f"{s}.jpg", xml_box(points)) for s, points in zip("abc", landmarks, strict=True)]
    (tmp_path / "xml" / "faces.xml").write_text(xml(*boxes))
    for path in ("table", "table/landmarks.csv", "pts", "xml/faces.xml"):
        faces = read_annotations(tmp_path / path)
        assert [face.image.name for face in faces] == ["a.jpg", "b.jpg", "c.jpg"], path
        assert all(face.image.is_file() for face in faces)
        assert faces[0].landmarks.dtype == np.float64
        found = np.stack([face.landmarks for face in faces])
        np.testing.assert_allclose(found, landmarks, atol=1e-9, err_msg=path)
        assert {(face.identity, face.split) for face in faces} == {("", "")}
        boxed = path.endswith(".xml")
        for face in faces:
            assert (face.box is not None) == boxed
            if boxed:
                np.testing.assert_array_equal(face.box, (8, 9, 70, 80))


def test_table_with_everything(tmp_path, landmarks):
    """Images in the folder beside it, a face without a box, columns in any order, a BOM."""
    touch(tmp_path / "images" / "a.jpg", tmp_path / "images" / "sub" / "b.jpg")
    path = write_csv(
        tmp_path / "points.csv",
        landmarks[:2],
        images=["a.jpg", "sub/b.jpg"],
        split=["train", " val"],
        h=["40", ""],
        remark=["a, b", ""],
        w=["30", ""],
        y=["-2.5", ""],
        x=["1", ""],
        identity=["Zoë", "7"],
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    first, second = read_annotations(path)
    assert first.image == tmp_path / "images" / "a.jpg"
    assert second.image == tmp_path / "images" / "sub" / "b.jpg"
    assert (first.identity, first.split) == ("Zoë", "train")
    assert (second.identity, second.split) == ("7", "val")
    np.testing.assert_array_equal(first.box, (1, -2.5, 30, 40))
    assert second.box is None
    (only,) = read_annotations(path, split="val")
    assert only.image == second.image
    with pytest.raises(AnnotationError, match=r"no faces of the split 'test'.*'train', 'val'"):
        read_annotations(path, split="test")


def test_table_of_fits_can_be_read(tmp_path, landmarks):
    """Its x_0, x_1, ... come before y_0, y_1, ..."""
    touch(tmp_path / "a.jpg")
    x, y = landmarks[0].T
    names = [f"{axis}_{i}" for axis in "xy" for i in range(N)]
    numbers = [f"{v}" for v in (*x, *y)]
    (tmp_path / "f.csv").write_text(
        ",".join(["image", "status", *names]) + "\n" + ",".join(["a.jpg", "converged", *numbers])
    )
    (face,) = read_annotations(tmp_path / "f.csv")
    np.testing.assert_array_equal(face.landmarks, landmarks[0])


def test_images_of_other_splits_may_be_missing(tmp_path, landmarks):
    touch(tmp_path / "b.jpg")
    path = write_csv(tmp_path / "l.csv", landmarks[:2], split=["train", "val"])
    assert len(read_annotations(path, split="val")) == 1
    with pytest.raises(AnnotationError, match=r"l\.csv, line 2: the image .*a\.jpg is missing"):
        read_annotations(path)


def test_names_that_are_not_utf_8(tmp_path, landmarks):
    name = b"caf\xe9.jpg"
    try:
        touch(tmp_path / name.decode(errors="surrogateescape"))
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    path = write_csv(tmp_path / "l.csv", landmarks[:1])
    path.write_bytes(path.read_bytes().replace(b"a.jpg", name))
    (face,) = read_annotations(path)
    assert face.image.is_file()


def test_points_beside_images_at_any_depth(tmp_path, landmarks):
    touch(tmp_path / "helen" / "test" / "b.PNG", tmp_path / "a.jpg", tmp_path / "._a.jpg")
    (tmp_path / "helen" / "test" / "b.pts").write_text(pts(landmarks[1]))
    (tmp_path / "a.pts").write_bytes(pts(landmarks[0]).replace("\n", "\r\n").encode())
    (tmp_path / "._a.pts").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them on other disks
    first, second = read_annotations(tmp_path)
    assert (first.image.name, second.image.name) == ("a.jpg", "b.PNG")
    np.testing.assert_allclose(second.landmarks, landmarks[1], atol=1e-9)
    (one,) = read_annotations(tmp_path / "a.pts")
    np.testing.assert_allclose(one.landmarks, landmarks[0], atol=1e-9)


def test_whose_faces_points_are_of(tmp_path, landmarks):
    names = ("p1/a.jpg", "p1/deep/b.jpg", "p2/a.jpg", "c_07.jpg")
    for name in names:
        touch(tmp_path / name)
        (tmp_path / name).with_suffix(".pts").write_text(pts(landmarks[0]))
    found = read_annotations(tmp_path)
    paths = [face.image.relative_to(tmp_path).as_posix() for face in found]
    assert dict(zip(paths, (f.identity for f in found), strict=True)) == dict(
        zip(names, ("p1", "p1", "p2", ""), strict=True)
    )
    for pattern, whose in ((r"([a-c])(?:_\d+)?$", "caba"), (r".$", "7aba"), (r"(\w)\w*$", "caba")):
        found = read_annotations(tmp_path, identity=pattern)
        assert "".join(face.identity for face in found) == whose
    with pytest.raises(AnnotationError, match=r"c_07\.jpg: identity: 'p\(.\)' finds nobody"):
        read_annotations(tmp_path, identity="p(.)")
    with pytest.raises(AnnotationError, match=r"'\(' is no regular expression"):
        read_annotations(tmp_path, identity="(")


def test_files_of_a_folder_that_are_left_out_are_named(tmp_path, landmarks):
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "d" / "c.png", tmp_path / "notes.txt")
    (tmp_path / "a.pts").write_text(pts(landmarks[0]))
    notes = []
    assert len(read_annotations(tmp_path, note=notes.append)) == 1
    (line,) = notes
    assert line == (
        f"{tmp_path}: 3 left out (no images or .pts files: notes.txt; "
        "no .pts file beside them: b.jpg, d/c.png)"
    )


def test_several_faces_in_an_image(tmp_path, landmarks):
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    ignored = "<box top='0' left='0' width='9' height='9' ignore='1'/>"
    shuffled = xml_box(landmarks[1]).split("<part")
    random.Random(0).shuffle(tail := [part.removesuffix("</box>") for part in shuffled[1:]])
    boxes = [xml_box(landmarks[0]), ignored, "<part".join([shuffled[0], *tail]) + "</box>"]
    (tmp_path / "f.xml").write_text(xml(("b.jpg",), ("a.jpg", *boxes)))
    first, second = read_annotations(tmp_path / "f.xml")
    assert first.image == second.image == tmp_path / "a.jpg"
    np.testing.assert_array_equal(first.landmarks, landmarks[0])
    np.testing.assert_array_equal(second.landmarks, landmarks[1])  # by name, not by order


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi"))  # noqa: B905
    + "]><dataset><images><image file='&i;'/></images></dataset>"
)
EXTERNAL = (
    '<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    "<dataset><images><image file='&a;'/></images></dataset>"
)
SQUARE = np.array([(1.0, 1), (9, 1), (9, 9), (1, 9), (5, 5)])
BOX = xml_box(SQUARE)
GOOD_XML = xml(("a.jpg", BOX))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (GOOD_XML[:-40], "not whole"),
        (GOOD_XML[:200], "not whole"),
        (BILLION_LAUGHS, "DOCTYPE"),
        (EXTERNAL, "DOCTYPE"),
        ("<!DOCTYPE html><html></html>", "DOCTYPE"),
        (GOOD_XML.replace("ISO-8859-1", "no-such-code"), "not whole or not XML"),
        ("image,x_0,y_0\na.jpg,1,2\n", "not whole or not XML"),
        ("<html><body/></html>", "no annotated faces"),
        (xml(("a.jpg", BOX.replace("x='9.0'", "x='nine'", 1))), "line 6: 'nine' is not a number"),
        (xml(("a.jpg", BOX.replace("x='9.0'", "x='nan'", 1))), "line 6: a number that is not fin"),
        (xml(("a.jpg", BOX.replace("x='9.0'", "x='1e300'", 1))), "beyond any image"),
        (xml(("a.jpg", BOX.replace("x='9.0'", "", 1))), "line 6: the attribute 'x' is missing"),
        (xml(("a.jpg", BOX.replace("'01'", "'00'"))), "'00' is there twice"),
        (xml(("a.jpg", BOX.replace("'01'", "'77'"))), "5 parts, but none of the name 1"),
        (xml(("a.jpg", BOX.replace("'01'", "'nose'"))), "'nose' is not a number"),
        (xml(("a.jpg", BOX.replace("width='70'", "width='0'"))), "width and height"),
        (xml(("a.jpg", "<box top='0' left='0' width='9' height='9'/>")), "ignore='1'"),
        (xml(("a.jpg", BOX), ("a.jpg", xml_box(SQUARE[:4]))), "4 landmarks, but 5 in"),
        (xml(("missing.jpg", BOX)), "missing.jpg is missing"),
        (xml((f"{'x' * 5000}.jpg", BOX)), "is missing"),
        ("<dataset><images>" + BOX + "</images></dataset>", "a box outside any image"),
        (GOOD_XML.replace("<box", "<part name='0' x='1' y='1'/><box"), "a part outside any box"),
        ("<a>" * 100_000, "not whole"),
    ],
)
def test_hostile_xml(tmp_path, text, message):
    touch(tmp_path / "a.jpg")
    (tmp_path / "f.xml").write_text(text)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(tmp_path / "f.xml")
    assert "f.xml" in str(caught.value)


HEADER = "image," + ",".join(f"x_{i},y_{i}" for i in range(N))
ROW = "a.jpg,1,1,9,1,9,9,1,9,5,5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (HEADER, "no annotated faces"),
        (f"{HEADER}\n{ROW}\n{ROW[:15]}", "line 3: 6 fields, but 11 columns"),
        (f"{HEADER}\n{ROW},3\n", "line 2: 12 fields"),
        (f'{HEADER}\n{ROW}\n"a.jpg,1,1', "line 3: not a CSV file"),
        (f"{HEADER}\n{ROW.replace('9', 'nan', 1)}\n", "line 2: a number that is not finite"),
        (f"{HEADER}\n{ROW.replace('9', 'inf', 1)}\n", "line 2: a number that is not finite"),
        (f"{HEADER}\n{ROW.replace('9', '1e7', 1)}\n", "line 2: 1e.07 is beyond"),
        (f"{HEADER}\n{ROW.replace('9', '', 1)}\n", "line 2: '' is not a number"),
        (f"{HEADER}\n{ROW.replace('9', '9px', 1)}\n", "line 2: '9px' is not a number"),
        (f"{HEADER}\n{ROW.replace('a.jpg', '')}\n", "line 2: no image is named"),
        (f"{HEADER}\na.jpg,3,1,3,2,3,3,3,4,3,5\n", "line 2: the landmarks have no extent"),
        (f"{HEADER},x_0\n{ROW},1\n", "line 1: the column 'x_0' is there twice"),
        (f"{HEADER},y_5\n{ROW},1\n", "pairs"),
        (f"{HEADER.replace('x_3', 'x_7')}\n{ROW}\n", "line 1: the column 'x_3' is missing"),
        ("image,x,y,w,h\na.jpg,1,2,3,4\n", "needs a header line"),
        (f"{HEADER.replace('image', 'file')}\n{ROW}\n", "needs a header line"),
        (f"{HEADER},x,y,w,h\n{ROW},1,1,0,5\n", "line 2: the box's width and height"),
        (f"{HEADER},x,y,w,h\n{ROW},1,1,,5\n", "line 2: '' is not a number"),
        (f"{HEADER},x,y,w,h\n{ROW},1,nan,3,5\n", "line 2: a number that is not finite"),
        (f"{HEADER}\n{'a' * 200_000},{ROW[6:]}\n", "line 2: not a CSV file"),
        (f"{HEADER}\n{ROW.replace('a.jpg', 'no.jpg')}\n", r"line 2: the image .*no\.jpg is mis"),
        (f"{HEADER}\n{ROW.replace('a.jpg', 'a' + chr(0))}\n", "missing"),
        ("\x89PNG\r\n\x1a\n\0\0\0", "needs a header line"),
    ],
)
def test_hostile_tables(tmp_path, text, message):
    touch(tmp_path / "a.jpg")
    (tmp_path / "f.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(tmp_path / "f.csv")
    assert "f.csv" in str(caught.value)


GOOD_PTS = pts(SQUARE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (GOOD_PTS[:40], "is the file whole"),
        (GOOD_PTS.replace("}", ""), "is the file whole"),
        (GOOD_PTS.replace("n_points:  5", "n_points: 6"), "5 points, but n_points is 6"),
        (GOOD_PTS.replace("n_points:  5\n", ""), "n_points is missing"),
        (GOOD_PTS.replace("version: 1", "version: 9"), "version 1"),
        (GOOD_PTS.replace("10.00 2.00", "10.00"), "line 5: expected x and y"),
        (GOOD_PTS.replace("10.00 2.00", "10.00 2.00 3.00"), "line 5: expected x and y"),
        (GOOD_PTS.replace("10.00 2.00", "10.00 two"), "line 5: 'two' is not a number"),
        (GOOD_PTS.replace("10.00 2.00", "10.00 nan"), "not finite"),
        (GOOD_PTS.replace("10.00 2.00", "10.00 1e99"), "beyond any image"),
        ("version: 1\nn_points: 0\n{\n}\n", "0 points"),
        ("version: 1\nhello\n{\n}\n", "line 2: expected"),
        ("\xff\xfe\x00garbage", "line 1: expected"),
        ("a:b\n" * 300_000, "1200000 bytes"),
    ],
)
def test_hostile_points(tmp_path, text, message):
    touch(tmp_path / "a.jpg")
    (tmp_path / "a.pts").write_bytes(text.encode("latin-1"))
    for path in (tmp_path, tmp_path / "a.pts"):
        with pytest.raises(AnnotationError, match=message) as caught:
            read_annotations(path)
        assert "a.pts" in str(caught.value)


def test_what_is_beside_the_points(tmp_path):
    (tmp_path / "a.pts").write_text(GOOD_PTS)
    with pytest.raises(AnnotationError, match=r"a\.pts: no image called a "):
        read_annotations(tmp_path)
    touch(tmp_path / "a.png", tmp_path / "a.jpg")
    with pytest.raises(AnnotationError, match=r"a\.pts: several images called a "):
        read_annotations(tmp_path)
    (tmp_path / "a.jpg").unlink()
    touch(tmp_path / "b.png")
    (tmp_path / "b.pts").write_text(pts(SQUARE[:4]))
    with pytest.raises(AnnotationError, match=r"b\.pts: 4 landmarks, but 5 in .*a\.pts"):
        read_annotations(tmp_path)


def test_neither_file_nor_folder(tmp_path):
    with pytest.raises(AnnotationError, match="no such file or folder"):
        read_annotations(tmp_path / "no")
    for name in ("no.csv", "no.xml", "no.pts"):
        with pytest.raises(AnnotationError, match=rf"{name}: no such file"):
            read_annotations(tmp_path / name)
    with pytest.raises(AnnotationError, match=r"neither landmarks\.csv nor \.pts files"):
        read_annotations(tmp_path)
    (tmp_path / "f.json").write_text("{}")
    with pytest.raises(AnnotationError, match=r"a \.csv, \.xml or \.pts file, or a folder"):
        read_annotations(tmp_path / "f.json")
    (tmp_path / "a.pts").mkdir()
    with pytest.raises(AnnotationError, match="neither"):
        read_annotations(tmp_path)


def test_too_many_landmarks(tmp_path):
    touch(tmp_path / "a.jpg")
    write_csv(tmp_path / "f.csv", [np.arange(2002.0).reshape(1001, 2)])
    with pytest.raises(AnnotationError, match="more than 1000 landmarks"):
        read_annotations(tmp_path / "f.csv")


def faces(*identities):
    points = np.zeros((2, 2))
    return [
        AnnotatedFace(Path(f"{i}.jpg"), points, identity=identity)
        for i, identity in enumerate(identities)
    ]


def test_whole_identities_are_held_out():
    everyone = faces(*(f"person {i % 20}" for i in range(100)))
    train, held = split_by_identity(everyone, 0.25, 3)
    assert len({face.identity for face in held}) == 5
    assert not {face.identity for face in held} & {face.identity for face in train}
    assert sorted(train + held, key=everyone.index) == everyone
    assert [face.image for face in held] == [f.image for f in everyone if f in held]

    # Neither the order of the faces nor the process matters, the seed does.
    again = split_by_identity(everyone[::-1], 0.25, 3)
    assert {face.image for face in again[1]} == {face.image for face in held}
    other = split_by_identity(everyone, 0.25, 4)
    assert {face.image for face in other[1]} != {face.image for face in held}


def test_without_identity_by_image():
    nobody = [*faces(*[""] * 6), *faces(*[""] * 6)]  # two faces in each image
    train, held = split_by_identity(nobody, 0.5, 0)
    assert len(train) == len(held) == 6
    assert not {face.image for face in train} & {face.image for face in held}


def test_both_sides_have_faces():
    for fraction in (0.001, 0.999):
        train, held = split_by_identity(faces("a", "b", "b"), fraction, 0)
        assert train
        assert held
    for fraction, who in ((0.5, "aa"), (0.0, "ab"), (1.0, "ab"), (np.nan, "ab"), (0.5, "")):
        with pytest.raises(AnnotationError, match=r"fraction|identities"):
            split_by_identity(faces(*who), fraction, 0)


def test_public_names():
    assert jclnf.annotations.read_annotations is read_annotations
    assert issubclass(jclnf.errors.AnnotationError, jclnf.JclnfError)
