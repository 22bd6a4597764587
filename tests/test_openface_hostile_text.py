"""Damaged and hostile lists of files, shape models, and other things in place of files."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.openface_files import little_memory, pdm_text, tiny_model, write_model

from jclnf.errors import ModelFileError
from jclnf.openface._model import read_openface
from jclnf.openface._pdm import read_pdm

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\2\0\0\0\2\0\x08\0\0\0\0"


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", tiny_model())


def test_a_shape_model_cut_off_anywhere(tmp_path: Path) -> None:
    data = pdm_text(tiny_model()).encode().rstrip()
    path = tmp_path / "pdm.txt"
    whole = 0
    for size in range(1, len(data) + 1):
        path.write_bytes(data[:size])
        try:
            assert all(np.isfinite(array).all() for array in read_pdm(path))
            whole += 1
        except ModelFileError:
            pass
    # Only the digits of the last number can be missing unnoticed.
    assert 1 <= whole <= len(data.split()[-1])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("7 1 6 " + "1 " * 7, "has 7 numbers"),
        ("0 1 6", "has 0 numbers"),
        ("6 2 6 " + "1 " * 12, "line 1: number of columns of the mean shape is '2'"),
        ("-6 1 6 1", "number of rows of the mean shape is '-6'"),
        ("6 1 3 " + "1 " * 6, "element type 3"),
        ("6 1 4 " + "1 " * 6, "element type 4"),
        ("2000000000 1 6 1 2 3", "truncated: the mean shape has 2000000000 numbers"),
        ("2147483647 2147483647 6", "number of columns"),
        ("99999999999999999999 1 6", "number of rows"),
        ("6 1 6 1 2 3 4 5 6\n9 1 6" + " 1" * 9, "line 2: number of rows of the components"),
        ("6 1 6 1 2 3 4 5 6\n6 2000000000 6 1", "truncated: the components"),
        ("6 1 6 1 2 3 4 5 6\n6 0 6", "has no components"),
        ("6 1 6 1 1 3 4 5 6", "lie on one line"),
        ("6 1 6 1 2 3 4 5 nan", "line 1: the mean shape: .* is not a finite"),
        ("6 1 6 1 2 3 4 5 1e39", "line 1: the mean shape: .* is not a finite"),
        ("6 1 6 1 2 3 4 5 1e999", "line 1: the mean shape: .* is not a finite"),
        ("6 1 6 1 2 3 4 5 1_0", "line 1: an underscore"),
        ("6 1 6 1 2 3 4 5 5mm", "line 1: the mean shape: '5mm' is not a number"),
        ("# mean\n6\n1\n6\n1 2 3\n4 5 x", "line 6: "),
        ("", "is empty"),
        ("# only this", "truncated: the file ends before"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 2 6 1 1", "number of columns of the eigenvalues"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 2 1 6 1 1", "number of rows of the eigenvalues"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 1 6 0", "eigenvalue is not positive"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 1 6 -2", "eigenvalue is not positive"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 1 6 1e-42", "eigenvalue is not positive"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 1 6 2 7", "more follows"),
        ("6 1 6 1 2 3 4 5 6 6 1 6 1 1 1 1 1 1 1 1 6\0 2", "zero byte"),
    ],
)
def test_damaged_shape_models(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "pdm.txt"
    path.write_text(text)
    with little_memory(), pytest.raises(ModelFileError, match=match):
        read_pdm(path)


LISTS: list[tuple[str, str, str]] = [
    ("main", "LandmarkDetector main_clnf_general.txt", "in a circle"),
    ("list", "LandmarkDetector main_clnf_general.txt", "in a circle"),
    ("list", "LandmarkDetector ./../model/clnf_general.txt", "in a circle"),
    ("main", "LandmarkDetector nothing.txt", r"nothing\.txt: no such file; main_clnf_general"),
    ("main", "LandmarkDetector pdms", "pdms: is a directory"),
    ("main", "LandmarkDetector pdms/pdm.txt", "pdm.txt: line 2: unknown keyword"),
    ("main", "LandmarkDetector", "line 1: LandmarkDetector names no file"),
    ("main", "LandmarkDetector a.txt\nLandmarkDetector b.txt", "names 2 landmark detectors"),
    ("main", "LandmarkDetector clnf_general.txt\nPDM pdms/pdm.txt", "line 2: PDM in a file"),
    ("main", "FaceDetConversion haarAlign.txt", r"names 0 shape models \(PDM\)"),
    ("main", "# a remark\n\nLandmarkDetectr a.txt", "line 3: unknown keyword 'LandmarkDetectr'"),
    ("list", "PDM pdms/pdm.txt", "names none"),
    ("list", "PDM pdms/pdm.txt\nPDM b.txt\nPatchesCCNF a.txt", "names 2 shape models"),
    ("list", "PDM pdms/pdm.txt\nPatchesCCNF nothing.txt", r"line 2 names it \(PatchesCCNF\): keep"),
    ("list", "PDM pdms/pdm.txt/x\nPatchesCCNF nothing.txt", "no such file"),
    ("list", "PDM pdms/pdm.txt\nPatchesCCNF pdms/pdm.txt", "name the same file"),
    ("list", "PDM pdms/pdm.txt\nPatchesCCNF " + "a" * 5000, "cannot be read: .*too long"),
    ("list", "PDM pdms/pdm.txt\nPatchesCCNF a.txt\nPatchesCEN b.dat", "one kind, names Patches"),
    ("list", "PDM pdms/pdm.txt\n" + "PatchesCCNF a.txt\n" * 40, "name the same file"),
    (
        "list",
        "PDM pdms/pdm.txt\n" + "".join(f"PatchesCCNF {k}\n" for k in range(40)),
        "lists 40 files",
    ),
]


@pytest.mark.parametrize(("which", "text", "match"), LISTS)
def test_damaged_lists(main: Path, which: str, text: str, match: str) -> None:
    path = main if which == "main" else main.parent / "clnf_general.txt"
    path.write_text(text)
    with pytest.raises(ModelFileError, match=match):
        read_openface(main)


@pytest.mark.parametrize(
    "part", ["main_clnf_general.txt", "clnf_general.txt", "pdms/pdm.txt", "patches"]
)
@pytest.mark.parametrize(
    ("replace", "match"),
    [
        (lambda path: path.write_bytes(PNG), "not a text file|byte 0: scaling is"),
        (lambda path: path.mkdir(), "is a directory|the folder has neither"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.symlink_to(path), "cannot be read: .*symbolic links"),
        (lambda path: (path.touch(), os.truncate(path, 2**40)), "a file of this kind at most"),
    ],
)
def test_something_else_in_place_of_a_file(
    main: Path, part: str, replace: Callable[[Path], object], match: str
) -> None:
    path = main.parent / part.replace("patches", "patch_experts/ccnf_patches_0.5.txt")
    path.unlink()
    replace(path)
    with little_memory(), pytest.raises(ModelFileError, match=match) as raised:
        read_openface(main)
    assert path.name in str(raised.value)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path / "main_clnf_general.txt", tmp_path / "a" / "b.txt"):
        with pytest.raises(ModelFileError, match=r"no such file or folder; give OpenFace's main"):
            read_openface(path)
    with pytest.raises(ModelFileError, match=r"neither main_clnf.* nor .*: no main_\*\.txt"):
        read_openface(tmp_path)
    (tmp_path / "main_other.txt").touch()
    with pytest.raises(ModelFileError, match=r"there is only main_other\.txt"):
        read_openface(tmp_path)
    for name in ("a\0b", "\udcff" * 9):
        with pytest.raises(ModelFileError):
            read_openface(tmp_path / name)
