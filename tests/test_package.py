"""The package as such: what importing it costs and touches, which way imports run, the wheel."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

import jclnf

PACKAGE = REPOSITORY / "jclnf"

ROOMS = [
    "errors",
    "params",
    "runtime",
    "outputs",
    "images",
    "draw",
    "geometry",
    "experts",
    "fitting",
    "space",
    "openface",
    "files",
    "annotations",
    "detect",
    "evaluation",
    "tracking",
    "video",
    "train",
    "_clnf",
    "cli",
    "__main__",
]
"""What is directly in the package. Each imports from itself and from those before it."""
CORE = {"errors", "params", "geometry", "experts", "fitting", "space"}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_imports_run_one_way():
    """Between rooms; and within a room, modules do not import each other in a circle."""
    assert {module_of(path) for path in files()} == set(ROOMS)
    for path in files():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "jclnf" and len(parts) > 1 and parts[1] in ROOMS:
                at, own = ROOMS.index(parts[1]), ROOMS.index(module_of(path))
                assert at <= own, f"{path} imports {name}"


def test_rooms_are_entered_by_the_door():
    """A room's private modules are imported in it alone."""
    for path in files():
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "jclnf" and len(parts) > 2 and parts[2].startswith("_"):
                inside = module_of(path) == parts[1] or parts[1] in ("cli", "train")
                assert inside, f"{path} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): imported(path)
        for path in files()
        if path.name != "__init__.py"
    }
    sorter = graphlib.TopologicalSorter(
        {name: {other for other in names if other in modules} for name, names in modules.items()}
    )
    sorter.prepare()  # raises CycleError


def test_few_modules_lie_outside_a_room():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_the_numerical_core_knows_no_files_and_no_opencv():
    for path in files():
        if module_of(path) in CORE:
            heavy = {"cv2", "matplotlib", "safetensors", "pathlib", "json"} & imported(path)
            assert not heavy, f"{path.name} imports {heavy}"


NAMES = (
    "CLNF Arithmetic FitParams FitResult FitStatus JclnfError Model PDM Pose TrackParams Tracker "
    "crop enable_compilation_cache fit fit_images fit_points load_model load_openface save_model "
    "track warm_up"
)
SPACES = "annotations detect draw errors evaluation images openface space train"


def test_the_public_names():
    """Nothing else is offered at the top, and an example or a test uses each."""
    expected = {*NAMES.split(), *SPACES.split()}
    assert set(jclnf.__all__) == expected
    assert all(hasattr(jclnf, name) for name in expected)
    paths = [REPOSITORY / "README.md", *(REPOSITORY / "tests").glob("test_*.py")]
    text = "".join(path.read_text() for path in paths)
    used = set(re.findall(r"\bjclnf\.(\w+)", text))
    for names in re.findall(r"from jclnf import ([\w, ]+)", text):
        used |= set(names.split(", "))
    assert expected <= used


def test_errors_have_one_place():
    """But for their common base."""
    known = {name for name, value in vars(jclnf.errors).items() if isinstance(value, type)}
    assert known & set(vars(jclnf)) == {"JclnfError"}


def test_importing_is_quick_and_touches_no_device():
    """In processor time, and the best of three: wall time on a busy machine means nothing."""
    script = (
        "import time; start = time.process_time(); import jclnf; "
        "print(time.process_time() - start); "
        "from jax._src import xla_bridge; assert not xla_bridge._backends, 'a device was touched'"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 1.5


def test_the_command_line_answers_without_jax_devices():
    run = subprocess.run(
        [sys.executable, "-m", "jclnf.cli._main", "fit", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "--model" in run.stdout


@pytest.mark.slow
def test_the_wheel_installs_and_fits_outside_the_repository(tmp_path):
    """A fresh environment, with nothing but the wheel and what it asks for."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    bundled = {path.name for path in (REPOSITORY / "models").iterdir()}
    assert {f"jclnf/models/{name}" for name in bundled} <= set(zipfile.ZipFile(wheel).namelist())

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", str(wheel)],
        check=True,
        env=environment,
        timeout=900,
    )
    save = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cv2, jclnf, numpy as np; "
        "from support.synthetic import planted; face = planted(); "
        "jclnf.save_model(face.model, 'model.safetensors'); cv2.imwrite('face.png', face.image); "
        "print(*face.box)"
    )
    box = subprocess.run(
        [sys.executable, "-c", save, str(REPOSITORY / "tests")],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout.split()
    command = [
        tmp_path / "env" / "bin" / "jclnf",
        "fit",
        "face.png",
        "--model",
        "model.safetensors",
    ]
    run = subprocess.run(
        [*command, "--box", *box, "--out", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "landmarks.csv").read_text().count("\n") == 2
    assert (tmp_path / "out" / "face_overlay.png").stat().st_size > 1000
    where = subprocess.run(
        [python, "-c", "import jclnf; print(jclnf.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    ).stdout
    assert str(tmp_path) in where
