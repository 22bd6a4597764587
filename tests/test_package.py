"""The package as such: what importing it costs and touches, which way imports run, the wheel."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import pytest
import skimage.data
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
    "action_units",
    "files",
    "annotations",
    "detect",
    "evaluation",
    "tracking",
    "video",
    "train",
    "distributed",
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
SPACES = (
    "action_units annotations detect distributed draw errors evaluation images openface space train"
)


def test_the_public_names():
    """Nothing else is offered at the top, and an example or a test uses each."""
    expected = {*NAMES.split(), *SPACES.split()}
    assert set(jclnf.__all__) - {"__version__"} == expected
    assert all(hasattr(jclnf, name) for name in expected)
    paths = [REPOSITORY / "README.md", *(REPOSITORY / "tests").glob("test_*.py")]
    paths += (REPOSITORY / "docs").glob("*.md")
    text = "".join(path.read_text() for path in paths)
    used = set(re.findall(r"\bjclnf\.(\w+)", text))
    for names in re.findall(r"from jclnf import ([\w, ]+)", text):
        used |= set(names.split(", "))
    assert expected <= used


def test_errors_have_one_place():
    """But for their common base."""
    known = {name for name, value in vars(jclnf.errors).items() if isinstance(value, type)}
    assert known & set(dir(jclnf)) == {"JclnfError"}


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
        [sys.executable, "-m", "jclnf", "fit", "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "--model" in run.stdout


def interpreter(version: str) -> str | None:
    """A Python of this version: this one, one of pyenv's, or one on the path."""
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [sys.executable] if sys.version.startswith(f"{version}.") else []
    candidates += sorted(map(str, root.glob(f"versions/{version}.*/bin/python")))
    candidates += filter(None, [shutil.which(f"python{version}")])
    works = (subprocess.run([p, "-c", "import ensurepip"], capture_output=True) for p in candidates)
    return next((p for p, run in zip(candidates, works, strict=True) if run.returncode == 0), None)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_models_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.*")}
    folder = REPOSITORY / "models"
    models = {
        f"jclnf/models/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()
    }
    assert names == {name for name in package if "__pycache__" not in name} | models


FROM_THE_WHEEL = """
import cv2, jax, jclnf, numpy as np
image = cv2.imread("face.png")
grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
model = jclnf.load_model()
box = jclnf.detect.find_faces(jclnf.detect.default(), grey)[0]
one = jclnf.fit(model, grey, box)
many = jclnf.fit_images(model, [grey, grey[:-7]], [box, box])
(face,) = jclnf.Tracker(model).step(image, [box])
assert one.success and many.success.all() and face.success
for found in (*many.landmarks, face.result.landmarks):
    assert np.abs(found - one.landmarks).max() < 3
print(jclnf.__file__, jax.__version__)
"""


@pytest.mark.wheel
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_works_outside_the_repository(wheel, tmp_path, tmp_path_factory, version):
    """In a fresh environment, with nothing but the wheel and what it asks for."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version}")
    subprocess.run([python, "-m", "venv", tmp_path / "env"], check=True, timeout=120)
    # What one version has compiled serves the others.
    cache = str(tmp_path_factory.getbasetemp() / "compiled")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    environment["JAX_COMPILATION_CACHE_DIR"] = cache
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run(program: str, *arguments: object) -> str:
        command = [tmp_path / "env" / "bin" / program, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "--no-compile", wheel)
    cv2.imwrite(str(tmp_path / "face.png"), skimage.data.astronaut()[:, :, ::-1])
    assert str(tmp_path) in run("python", "-c", FROM_THE_WHEEL)
    if python == sys.executable:
        run("jclnf", "fit", "face.png", "--one", "--out", "out")
        assert (tmp_path / "out" / "landmarks.csv").read_text().count("\n") == 2
        assert (tmp_path / "out" / "face_overlay.png").stat().st_size > 1000
