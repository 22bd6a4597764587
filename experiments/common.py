"""What the experiments share: the development data, and files of results."""

import csv
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jclnf
from experiments import REPOSITORY
from jclnf.geometry import Pose
from jclnf.images import read_image

DATA = Path(os.environ.get("JCLNF_TEST_DATA", REPOSITORY.parent / "shared"))
OPENFACE = DATA / "openface"
PASSES = ("rigid", "nonrigid")


def model_file(kind: str) -> Path:
    """OpenFace's main file of the CCNF model `kind`, "general" or "wild"."""
    return OPENFACE / "model" / f"main_clnf_{kind}.txt"


class Face(NamedTuple):
    name: str
    image: np.ndarray
    box: np.ndarray


def faces(names: Any = None) -> list[Face]:
    """The faces that C++ fits are recorded for: all 120, or those of the given names."""
    with open(OPENFACE / "images" / "boxes.csv", newline="") as f:
        rows = {row["image"].removesuffix(".png"): row for row in csv.DictReader(f)}
    return [
        Face(
            name,
            read_image(OPENFACE / "images" / f"{name}.png"),
            np.array([float(rows[name][side]) for side in "xywh"], np.float32),
        )
        for name in (rows if names is None else names)
    ]


def recording(name: str) -> dict[str, np.ndarray]:
    """A file of recordings of OpenFace's C++, `openface/reference/<name>.npz`."""
    with np.load(OPENFACE / "reference" / f"{name}.npz") as arrays:
        return dict(arrays)


def landmarks_of(recorded: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    """Recorded final landmarks, (68, 2)."""
    return recorded[f"{prefix}/landmarks"].T


class State(NamedTuple):
    """Recorded parameters."""

    pose: Pose
    shape: np.ndarray


class Iteration(NamedTuple):
    """One recorded iteration, and the parameters before it."""

    rigid: bool
    number: int
    before: State
    prefix: str


class Scale:
    """One scale of a recorded fit; `scale["sigma"]` are the arrays recorded for it."""

    def __init__(self, arrays: dict[str, np.ndarray], prefix: str, index: int) -> None:
        self.arrays, self.fit, self.index = arrays, prefix, index
        self.prefix = f"{prefix}/scale{index}"
        self.face = prefix.split("/")[-1]
        self.view = int(self["view"].item())
        self.window = int(self["window_size"].item())
        self.start = state(self["params_global_in"], self["params_local_in"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[f"{self.prefix}/{name}"]

    def __contains__(self, name: str) -> bool:
        return f"{self.prefix}/{name}" in self.arrays

    def maps(self, name: str) -> np.ndarray:
        """`aoi` or `responses` as (68, side, side)."""
        flat = self[name]
        side = round(flat.shape[1] ** 0.5)
        return flat.reshape(-1, side, side)

    def similarity(self, name: str) -> np.ndarray:
        """A recorded 2x2 similarity as the pair (a, b) of `[[a, -b], [b, a]]`."""
        matrix = self[name]
        return np.array([matrix[0, 0], -matrix[0, 1]])

    def at(self, step: Iteration, name: str) -> np.ndarray:
        """An array recorded for an iteration."""
        return self[f"{step.prefix}/{name}"]

    def iterations(self) -> Iterator[Iteration]:
        before = self.start
        for name in PASSES:
            number = 0
            while f"{name}/iter{number}/param_update" in self:
                prefix = f"{name}/iter{number}"
                yield Iteration(name == "rigid", number, before, prefix)
                before = state(self[f"{prefix}/params_global"], self[f"{prefix}/params_local"])
                number += 1


def state(params_global: np.ndarray, params_local: np.ndarray) -> State:
    g = params_global.ravel()
    return State(Pose.from_euler(g[0], g[1:4], g[4:6]), params_local.ravel())


def scales(arrays: dict[str, np.ndarray]) -> Iterator[Scale]:
    """All scales of all fits of a file of recordings."""
    found = {re.match(r"(.*)/scale(\d+)/", key) for key in arrays if "/scale" in key}
    for prefix, index in sorted({(match[1], int(match[2])) for match in found}):
        yield Scale(arrays, prefix, index)


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured number, and what was asked of it."""

    quantity: str
    where: str
    """What the number was measured on."""
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
    """What was run, with what, on what machine."""
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
    names = ("jax", "jaxlib", "numpy", "equinox", "opencv-python-headless")
    return {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "jclnf": jclnf.__version__,
            **{name: importlib.metadata.version(name) for name in names},
        },
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
    }


def _module() -> str:
    """The module that is run."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else "?"


def write_results(folder: Path, title: str, body: str, numbers: dict[str, Any]) -> None:
    """Write `results.md` and `results.json` into `folder`, and print the former."""
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
