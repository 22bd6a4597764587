"""Load 10,000 damaged model files: does each load, or raise our error, in a second and a gigabyte?

OpenFace's real files of each kind (of the convolutional experts, one in the same form with small
networks of random weights) and jclnf's own model file are truncated, have bits flipped, counts
replaced by extreme ones, and bytes taken out, repeated or put in. The memory limit is the system's,
on the whole process: an allocation beyond it fails, and is counted.
"""

import dataclasses
import random
import resource
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jclnf
from experiments.common import OPENFACE, command_line, environment, table, write_results
from jclnf.openface import read_action_units
from jclnf.openface._action_units import read_predictor
from jclnf.openface._ccnf import read_ccnf_scale
from jclnf.openface._cen import read_cen_scale
from jclnf.openface._model import read_openface
from jclnf.openface._pdm import read_pdm
from jclnf.openface._read_early_termination import read_early_termination
from jclnf.openface._read_validator import make_validator, read_validator
from jclnf.openface._svr import read_svr_scale

HERE = Path(__file__).resolve().parent
SECONDS = 1.0
BYTES = 2**30
EXTREMES = (-1, 0, 1, 2, 255, 65536, 2**31 - 1, -(2**31), 0x7F800000)
WORDS = (
    b"9" * 40,
    b"-",
    b" ",
    b"\n",
    b"e999",
    b"nan",
    b"inf",
    b"2147483647",
    b"-1",
    b"\0",
    b"\xff",
)


class Kind(NamedTuple):
    name: str
    file: Path
    read: Callable[[Path], Any]
    count: int


def kinds(folder: Path) -> Iterator[Kind]:
    model = OPENFACE / "model"
    experts, inner = model / "patch_experts", model / "model_inner"
    native = folder / "native.safetensors"
    jclnf.save_model(jclnf.load_openface(model / "main_clnf_general.txt"), native)
    small = folder / "model"
    small.mkdir()
    for name in ("main_clnf_general.txt", "clnf_general.txt"):
        (small / name).write_bytes((model / name).read_bytes())
    for name in ("pdms", "patch_experts", "detection_validation", "model_eye", "model_inner"):
        (small / name).symlink_to(model / name)

    def load(path: Path) -> Any:
        del path  # what the main file leads to is loaded, whichever is damaged
        return read_openface(small / "main_clnf_general.txt")

    yield Kind("main file", small / "main_clnf_general.txt", load, 800)
    yield Kind("list", small / "clnf_general.txt", load, 800)
    yield Kind("shape model", model / "pdms" / "In-the-wild_aligned_PDM_68.txt", read_pdm, 1500)
    ccnf = experts / "ccnf_patches_0.25_general.txt"
    yield Kind("CCNF", ccnf, lambda path: read_ccnf_scale(path, 68), 2500)
    part = inner / "patch_experts" / "ccnf_patches_1.00_inner.txt"
    yield Kind("CCNF of a part", part, lambda path: read_ccnf_scale(path, 51), 900)
    svr = experts / "svr_patches_0.25_general.txt"
    yield Kind("SVR", svr, lambda path: read_svr_scale(path, 68), 1000)
    cen = OPENFACE / "synthetic_cen" / "cen_patches_0.25_of.dat"
    yield Kind("CEN", cen, lambda path: read_cen_scale(path, 68), 300)
    validator = model / "detection_validation" / "validator_cnn_68.txt"
    yield Kind("validator", validator, lambda path: make_validator(read_validator(path, 68)), 700)
    rule = model / "early_term_cen_of.txt"
    yield Kind("early termination", rule, read_early_termination, 500)
    units = OPENFACE / "AU_predictors"
    predictors = folder / "AU_predictors"
    predictors.mkdir()
    for path in units.iterdir():
        if path.suffix == ".txt":
            (predictors / path.name).write_bytes(path.read_bytes())
        else:
            (predictors / path.name).symlink_to(path)

    def load_units(path: Path) -> Any:
        del path
        return read_action_units(predictors / "main_dynamic_svms.txt")

    yield Kind("predictors of action units", predictors / "AU_all_best.txt", load_units, 300)
    yield Kind("triangles", predictors / "tris_68_full.txt", load_units, 300)
    one = units / "svr_combined" / "AU_1_dynamic_intensity_comb.dat"
    yield Kind("predictor", one, lambda path: read_predictor(path, "AU01", 4702), 1000)
    yield Kind("jclnf", native, jclnf.load_model, 1000)


def damage(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    # Headers and counts are at the start, where most of the damage is to be.
    reach = rng.choice((min(len(data), 400), min(len(data), 20_000), len(data)))
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(changed[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(min(reach, len(changed)))
        size = rng.choice((1, 4, 8, 40, 4096))
        if kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            at &= ~3
            changed[at : at + 4] = struct.pack("<i", rng.choice(EXTREMES))
        elif kind == 3 and len(changed) > size:
            del changed[at : at + size]
        elif kind == 4:
            changed[at:at] = changed[at : at + size]
        else:
            word = rng.choice(WORDS)
            changed[at : at + rng.choice((0, len(word)))] = word
    return bytes(changed)


def leaves(value: Any) -> Iterator[np.ndarray]:
    """All arrays in what a reader gives back."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, (np.ndarray, jax.Array)):
        yield np.asarray(value)


def outcome(kind: Kind, path: Path) -> str:
    try:
        read = kind.read(path)
    except jclnf.JclnfError:
        return "our error"
    except Exception as error:
        return f"FAILED: {type(error).__name__}"
    finite = all(np.isfinite(array).all() for array in leaves(read) if array.dtype.kind == "f")
    return "loads" if finite else "FAILED: not finite"


def main() -> None:
    command_line(__doc__).parse_args()
    rng = random.Random(7)
    counts: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = list(kinds(folder))
        for kind in every:  # whatever is set up at the first use
            kind.read(kind.file)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        for kind in every:
            intact = kind.file.read_bytes()
            inside = kind.file.is_relative_to(folder)
            path = kind.file if inside else folder / kind.file.name
            tally: Counter[str] = Counter()
            longest = 0.0
            for _ in range(kind.count):
                path.write_bytes(damage(rng, intact))
                start = time.process_time()
                result = outcome(kind, path)
                seconds = time.process_time() - start
                longest = max(longest, seconds)
                if seconds > SECONDS:
                    result = "FAILED: slow"
                if result.startswith("FAILED"):
                    print(kind.name, result)
                tally[result] += 1
            if inside:
                path.write_bytes(intact)
            else:
                path.unlink()
            counts[kind.name], slowest[kind.name] = tally, longest
            print(kind.name, dict(tally), f"{longest:.3f} s", flush=True)

    rows = []
    for kind in every:
        tally = counts[kind.name]
        failed = sum(n for result, n in tally.items() if result.startswith("FAILED"))
        rows.append(
            [kind.name, kind.count, tally["loads"], tally["our error"], failed,
             f"{slowest[kind.name]:.2f} s"]
        )  # fmt: skip
    total = sum(kind.count for kind in every)
    body = f"{total} files in all.\n\n" + table(
        ["file", "damaged", "load, all finite", "our error", "failed", "slowest (CPU)"],
        rows,
    )
    numbers = {"counts": {name: dict(tally) for name, tally in counts.items()}, "slowest": slowest}
    write_results(HERE, "Damaged model files", body, numbers | environment())


if __name__ == "__main__":
    main()
