"""Shared by the experiments: the development data, and files of results."""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import jclnf
from experiments import REPOSITORY
from jclnf.annotations import AnnotatedFace, BoxTable, read_annotations
from jclnf.evaluation import start_box
from tests.support import recordings

DATA = Path(os.environ.get("JCLNF_TEST_DATA", REPOSITORY.parent / "shared"))
OPENFACE = DATA / "openface"


def command_line(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring; to be asked before anything is computed."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def model_file(kind: str) -> Path:
    """OpenFace's main file of the CCNF model `kind`, "general" or "wild"."""
    return OPENFACE / "model" / f"main_clnf_{kind}.txt"


faces = functools.partial(recordings.faces, OPENFACE)
recording = functools.partial(recordings.recording, OPENFACE)


def annotated(split: str) -> list[AnnotatedFace]:
    """The annotated faces of a split, "train" or "val"."""
    return read_annotations(DATA / "faces" / "landmarks.csv", split=split)


def validation() -> tuple[list[AnnotatedFace], list[np.ndarray]]:
    """The validation faces, and the boxes that all methods start from."""
    val, boxes = annotated("val"), BoxTable(DATA / "faces" / "val_boxes.csv")
    return val, [boxes.boxes(face.image)[0] for face in val]


def disturbed_box(face: AnnotatedFace, rng: np.random.Generator) -> np.ndarray:
    """A face's box, off by as much as those of `validation` are."""
    x, y, w, h = start_box(face)
    x, y = np.array([x, y]) + rng.normal(0, 0.03, 2) * [w, h]
    return np.array([x, y, *(np.array([w, h]) * np.exp(rng.normal(0, 0.05)))])


HOPPER_BOX = (180.0, 170.0, 170.0, 165.0)
"""The face in `hopper()`."""


def hopper() -> Path:
    """matplotlib's sample photograph of Grace Hopper (US Navy, public domain)."""
    import matplotlib.cbook

    return Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def grey_frames(clip: str) -> Iterator[np.ndarray]:
    """The frames of one of OpenFace's sample clips."""
    from jclnf.video import open_source  # needs PyAV

    for frame in open_source(OPENFACE / "samples" / clip).frames():
        yield cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)


def box_errors(truth: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of boxes `(n, 4)`: of the centre in sides of the true ones, of the size as a
    logarithm."""
    away = (boxes - truth)[:, :2] + (boxes - truth)[:, 2:] / 2
    size = np.log(np.sqrt(boxes[:, 2:].prod(1) / truth[:, 2:].prod(1)))
    return np.linalg.norm(away, axis=1) / truth[:, 2:].mean(1), size


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured number, and what was asked of it."""

    quantity: str
    where: str
    """The data that the number was measured on."""
    count: int
    """How many things it is taken over."""
    measured: float
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether what was asked is met; None if nothing was."""
        if self.at_most is not None:
            return bool(self.measured <= self.at_most)
        return None if self.at_least is None else bool(self.measured >= self.at_least)

    @property
    def asked(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}".rstrip()
        return "" if self.at_least is None else f">= {self.at_least:g} {self.unit}".rstrip()

    @property
    def found(self) -> str:
        """The measured number as text, marked where it is not what was asked."""
        mark = " (NOT MET)" if self.met is False else ""
        return f"{self.measured:.4g} {self.unit}".rstrip() + mark


def missed(rows: list[Row]) -> tuple[str, list[Row]]:
    """How many figures were asked for and not met, as a sentence, and those that were not."""
    asked = [row for row in rows if row.met is not None]
    wrong = [row for row in asked if not row.met]
    return f"{len(asked)} figures are asked for; not met: {len(wrong)}.", wrong


def table(header: list[str], lines: list[list[Any]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def pivot(rows: list[Row]) -> str:
    """A table with a line for each quantity, and a column for each place it was measured at."""
    places = list(dict.fromkeys(row.where for row in rows))
    by_quantity: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_quantity.setdefault(row.quantity, {})[row.where] = row
    lines = []
    for quantity, found in by_quantity.items():
        asked = " / ".join(dict.fromkeys(row.asked for row in found.values() if row.asked))
        cells = [found[place].found if place in found else "" for place in places]
        lines.append([quantity, asked, *cells])
    return table(["", "asked", *places], lines)


def environment() -> dict[str, Any]:
    """The command, the versions, the commit and the machine of a run."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        fields = [
            re.search(rf"^{name}\s*: (.*)$", text, re.M)
            for name in ("model name", "cpu family", "model")
        ]
        if all(fields):
            name, family, number = (field[1].strip() for field in fields)
            model = f"{name} (family {family}, model {number})"
    names = ("jax", "jaxlib", "numpy", "equinox", "opencv-python-headless", "av")
    return {
        "command": shlex.join(["python", "-m", _module(), *map(_named, sys.argv[1:])]),
        "versions": {
            "python": platform.python_version(),
            "jclnf": jclnf.__version__,
            **{name: version for name in names if (version := _version(name))},
        },
        "commit": _commit(),
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
    }


def _named(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _commit() -> str | None:
    """The commit of this working copy; None without a history."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    """The version of a package; None where it is not installed, as PyAV where no video is read."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _module() -> str:
    """The module that is run."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else "?"


def write_results(folder: Path, title: str, body: str, numbers: dict[str, Any]) -> None:
    """Write `results.md` and `results.json` into `folder`, and print the former."""
    folder.mkdir(exist_ok=True)
    about = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    text = (
        f"# {title}\n\n{body}\n\n"
        f"Command: `{about['command']}`. Versions: {versions}. Machine: {about['machine']}.\n"
    )
    (folder / "results.md").write_text(text)
    everything = _plain({"environment": about, **numbers})
    (folder / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(text)


def _plain(value: Any) -> Any:
    """Python values with floats of few digits, for a JSON file that can be read and compared."""
    if isinstance(value, Row):
        return _plain({**dataclasses.asdict(value), "met": value.met})
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.5g}") if isinstance(value, float) else value
