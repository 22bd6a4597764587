"""Which results are older than the code that they measure."""

import subprocess
from pathlib import Path

import pytest

from experiments.stale import stale

FILES = {
    "jclnf/__init__.pyi": "from . import draw as draw\nfrom .fitting import fit as fit\n",
    "jclnf/fitting/_fit.py": "def fit():\n    return 1\n",
    "jclnf/draw/_landmarks.py": "def landmarks():\n    return 1\n",
    "experiments/common.py": "import jclnf.draw\n",
    "experiments/speed/__main__.py": "import jclnf\nfrom experiments import common\njclnf.fit()\n",
    "experiments/speed/results.md": "fast\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "-q", "--allow-empty", "-m", "x")


def changed(root: Path, name: str, text: str) -> list[tuple[str, list[str]]]:
    (root / name).write_text(text)
    commit(root)
    return [(one.folder, one.changed) for one in stale(root)]


def test_results_are_as_old_as_what_they_were_recorded_with(repository: Path):
    assert stale(repository) == []
    other = "jclnf/draw/_landmarks.py"
    assert changed(repository, other, "def landmarks():\n    return 2\n") == []
    fit = "jclnf/fitting/_fit.py"
    assert changed(repository, fit, '"""Words."""\n\n' + FILES[fit] + "# more\n") == []
    assert changed(repository, fit, "def fit():\n    return 2\n") == [("speed", [fit])]
    assert changed(repository, "experiments/speed/results.md", "faster\n") == []


def test_a_changed_experiment_and_a_new_file_count(repository: Path):
    new = "jclnf/fitting/_more.py"
    assert changed(repository, new, "x = 1\n") == [("speed", [new])]
    script = "experiments/speed/__main__.py"
    assert changed(repository, script, "import jclnf\njclnf.fit(2)\n") == [("speed", [script, new])]


def test_results_that_came_out_the_same_are_as_old_as_they_say(repository: Path):
    fit = "jclnf/fitting/_fit.py"
    assert changed(repository, fit, "def fit():\n    return 2\n") == [("speed", [fit])]
    made_at = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    results = "experiments/speed/results.json"
    said = f'{{"environment": {{"commit": "{made_at}"}}, "speed": 1}}'
    assert changed(repository, results, said) == []
    assert changed(repository, fit, "def fit():\n    return 3\n") == [("speed", [fit])]
    unknown = said.replace(made_at, "0000000")
    assert changed(repository, results, unknown) == []


def test_results_are_of_the_command_that_they_say_and_of_what_it_imports(repository: Path):
    folder = repository / "experiments" / "speed"
    (folder / "other.py").write_text("from experiments.speed.fits import fitted\n")
    (folder / "fits.py").write_text("import jclnf\nfitted = jclnf.fit\n")
    (folder / "other").mkdir()
    said = '{"environment": {"command": "python -m experiments.speed.other --quick"}}'

    def of_other(name: str, text: str) -> list[list[str]]:
        return [files for at, files in changed(repository, name, text) if at == "speed/other"]

    assert of_other("experiments/speed/other/results.json", said) == []
    assert of_other("experiments/speed/__main__.py", "import jclnf\n") == []
    fit = "jclnf/fitting/_fit.py"
    assert of_other(fit, "def fit():\n    return 2\n") == [[fit]]


def test_rooms_count_with_what_they_import_but_for_those_about_files(repository: Path):
    fit = "jclnf/fitting/_fit.py"
    imports = "from jclnf.draw import landmarks\n" + FILES[fit]
    assert changed(repository, fit, imports) == [("speed", [fit])]
    draw = "jclnf/draw/_landmarks.py"
    both = [("speed", [draw, fit])]
    assert changed(repository, draw, "def landmarks():\n    return 2\n") == both
    (repository / "jclnf" / "video").mkdir()
    (repository / "jclnf" / "video" / "_run.py").write_text("import jclnf.draw\n")
    script = "experiments/speed/__main__.py"
    assert changed(repository, script, "import jclnf.video\n") == [
        ("speed", [script, "jclnf/video/_run.py"])
    ]
