"""Which results are older than the code that they measure?

    python -m experiments.stale

For each folder with results: the files of the experiment itself, of the rooms of jclnf that it
imports and that these import, and the bundled model if it loads models, are compared with those of
the commit that the results were made at, as they say themselves, or else of the one that recorded
them. Comments and docstrings do not count. Ends with 1 if there are any.
"""

import argparse
import ast
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from experiments import REPOSITORY

ABOUT_FILES = {"annotations", "cli", "distributed", "files", "outputs", "video"}
"""Rooms of jclnf whose experiments ask what becomes of files, not of the numbers in them: what
those rooms import does not count."""
HELPERS = {"common", "timing", "killing"}
"""Modules of `experiments` that measure nothing themselves."""


class Stale(NamedTuple):
    """Results that are older than what they measure."""

    folder: str
    """Of the results."""
    recorded: str
    """Date and commit."""
    changed: list[str]
    """Files that are others now."""


def stale(root: Path) -> list[Stale]:
    """The results of a repository that are older than what they measure, by their folders."""
    found = []
    folders = {path.parent for path in root.glob("experiments/**/results.*")}
    for folder in sorted(folders):
        results = [str(path.relative_to(root)) for path in folder.glob("results.*")]
        recorded = _git(root, "log", "-1", "--format=%h %cs", "--", *results)
        if not recorded or _git(root, "status", "--porcelain", "--", *results):
            continue  # recorded just now
        commit, date = recorded.split()
        commit = _made_at(root, folder / "results.json") or commit
        paths = _measured(root, _experiment(root, folder))
        changed = _git(root, "diff", "--name-only", commit, "--", *sorted(paths)).splitlines()
        changed = [path for path in changed if _differs(root, commit, path)]
        if changed:
            name = str(folder.relative_to(root / "experiments"))
            found.append(Stale(name, f"{date}, {commit}", changed))
    return found


def _said(results: Path, what: str) -> str | None:
    """Something that results say of the run that made them, if they do."""
    if not results.exists():
        return None
    about = json.loads(results.read_text())
    environment = about.get("environment", {}) if isinstance(about, dict) else {}
    found = environment.get(what) if isinstance(environment, dict) else None
    return found if isinstance(found, str) else None


def _script(root: Path, results: Path) -> Path | None:
    """The script of the command that made results, if they say it and it is there."""
    words = (_said(results, "command") or "").split()
    if words[:2] != ["python", "-m"] or len(words) < 3:
        return None
    return _module(root, words[2])


def _module(root: Path, name: str) -> Path | None:
    """The file of a module, or what is run of a package, if it is there."""
    at = root.joinpath(*name.split("."))
    there = (path for path in (at.with_suffix(".py"), at / "__main__.py") if path.exists())
    return next(there, None)


def _made_at(root: Path, results: Path) -> str | None:
    """The commit that results say they were made at, if there is such a one."""
    name = _said(results, "commit")
    known = name and _git(
        root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", missing=""
    )
    return str(name) if known else None


def _experiment(root: Path, folder: Path) -> list[Path]:
    """The scripts whose results are in a folder: the one of the command that they say, or else its
    own, or the one of its name beside it."""
    if script := _script(root, folder / "results.json"):
        return [script]
    while folder != root / "experiments":
        beside = folder.with_suffix(".py")
        if beside.exists():
            return [beside]
        if own := sorted(folder.glob("*.py")):
            return own
        folder = folder.parent
    return []


def _measured(root: Path, scripts: list[Path]) -> set[str]:
    """Files and folders that scripts consist of and import, from the root on."""
    rooms = _rooms(root)
    paths: set[str] = set()
    waiting = list(scripts)
    while waiting:
        script = waiting.pop()
        name = str(script.relative_to(root))
        if name in paths:
            continue
        paths.add(name)
        for module in _imported(script):
            first, *rest = module.split(".")
            if first == "jclnf" and rest:
                paths |= _with_imports(root, rooms.get(rest[0], rest[0]))
                if rest[0] in ("load_model", "CLNF"):
                    paths.add("models/default.safetensors")
            elif first == "experiments" and rest and rest[0] not in HELPERS:
                # What is imported is a module, or a name of one.
                found = _module(root, module) or _module(root, module.rpartition(".")[0])
                waiting += [found] if found else []
    return paths


def _with_imports(root: Path, room: str) -> set[str]:
    """A room of jclnf, and those that it imports: files and folders from the root on."""
    paths: set[str] = set()
    waiting = [room]
    while waiting:
        at = root / "jclnf" / waiting.pop()
        file = at.with_suffix(".py")
        name = str((file if file.exists() else at).relative_to(root))
        if name in paths:
            continue
        paths.add(name)
        if at.name in ABOUT_FILES:
            continue
        scripts = [file] if file.exists() else sorted(at.rglob("*.py"))
        modules = [module.split(".") for script in scripts for module in _imported(script)]
        waiting += [module[1] for module in modules if module[0] == "jclnf" and len(module) > 1]
    return paths


def _rooms(root: Path) -> dict[str, str]:
    """The room that each public name of jclnf is from."""
    tree = ast.parse((root / "jclnf" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def _imported(script: Path) -> set[str]:
    """Modules and names that a script imports, and attributes of jclnf that it uses."""
    return _names(script.read_text())


@functools.cache
def _names(text: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {f"jclnf.{node.attr}"} if node.value.id == "jclnf" else set()
    return names - {"jclnf.errors", "jclnf.__version__"}


def _differs(root: Path, commit: str, path: str) -> bool:
    """Whether a file says something else than at a commit."""
    now, before = root / path, _git(root, "show", f"{commit}:{path}", missing="")
    if not path.endswith(".py"):
        return True
    if not now.exists() or not before:
        return bool(before) or now.exists()
    return _code(now.read_text()) != _code(before)


def _code(text: str) -> str:
    """A module's code without docstrings and comments."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_text(statement)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(getattr(value, "value", None), str)


def _git(root: Path, *arguments: str, missing: str | None = None) -> str:
    run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    if run.returncode != 0 and missing is not None:
        return missing
    run.check_returncode()
    return run.stdout.decode(errors="replace").strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    found = stale(REPOSITORY)
    for one in found:
        shown = ", ".join(one.changed[:4]) + (", ..." if len(one.changed) > 4 else "")
        print(f"{one.folder} ({one.recorded}): {len(one.changed)} files changed: {shown}")
    print(f"{len(found)} results are older than what they measure")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
