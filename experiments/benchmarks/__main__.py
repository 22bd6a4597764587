"""How fast a fit is on a CPU, in units of OpenFace's C++ fit, and how long it takes to compile.

The C++ program itself is not run: `bench/calibrate.py` of the development data does work that was
timed beside it once. Each part runs in a process of its own, since devices are set up only once.
Run it on an otherwise idle machine; the load before it began is recorded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    STARTED = time.perf_counter()
    # As calibrate.py asks, and before NumPy is imported; XLA has threads of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import Row, faces, model_file, pivot, write_results
from experiments.timing import cpp_fit, timed
from jclnf.openface import FRONTAL, ROTATIONS

HERE = Path(__file__).resolve().parent
IMPORTED = time.perf_counter()
FACES = 32
SIDE = 512
COMPILATIONS = 3
COLD, CACHED = 15.0, 3.0
BY_CPP = {"OpenFace's model": 1.0, "bundled default, batch": 0.6, "bundled default": 1.1}
"""Longest time of a fit that is asked for, in C++ fits."""


def alternate(
    works: dict[str, Callable[[], Any]], alternations: int, starts: dict[str, int] | None = None
) -> dict[str, Any]:
    """Seconds a fit of each kind of work, and by the estimated C++ fit of the same moment; `starts`
    of each face are so many fits, one if not said."""
    fits = dict.fromkeys(works, FACES) | {n: FACES * k for n, k in (starts or {}).items()}
    for work in works.values():
        jax.block_until_ready(work())
    cpp: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(alternations):
        cpp.append(cpp_fit())
        for name, work in works.items():
            seconds[name].append(timed(work) / fits[name])
    return {
        "C++, estimated": cpp,
        "works": {
            name: {"seconds": taken, "by C++": [a / b for a, b in zip(taken, cpp, strict=True)]}
            for name, taken in seconds.items()
        },
    }


def load() -> tuple[jclnf.Model, Any, Any]:
    """The model, and the images and boxes of the first faces."""
    cases = faces(f"{i:03d}" for i in range(FACES))
    model = jclnf.load_openface(model_file("general"))
    return model, [face.image for face in cases], np.stack([face.box for face in cases])


def batch(alternations: int) -> dict[str, Any]:
    """A batch, on as many host devices as asked for by the caller's environment."""
    model, images, boxes = load()
    default = jclnf.load_model()
    works = {
        "OpenFace's model": lambda: jclnf.fit_images(model, images, boxes, init=FRONTAL),
        "bundled default, batch": lambda: jclnf.fit_images(default, images, boxes),
    }
    return alternate(works, alternations)


def single(alternations: int) -> dict[str, Any]:
    """Fits one after the other, each waited for; images already cropped."""
    model, images, boxes = load()
    crops = [
        jclnf.crop(image, box, sizes=(SIDE,)) for image, box in zip(images, boxes, strict=True)
    ]
    many = f"OpenFace's model, each of {len(ROTATIONS)} starts"
    forms = {
        "OpenFace's model": (model, FRONTAL),
        many: (model, ROTATIONS),
        "bundled default": (jclnf.load_model(), None),
    }

    def one_by_one(model: jclnf.Model, init: Any) -> None:
        for crop in crops:
            jax.block_until_ready(jclnf.fit(model, jnp.asarray(crop.image), crop.box, init=init))

    works = {name: lambda form=form: one_by_one(*form) for name, form in forms.items()}
    return alternate(works, alternations, {many: len(ROTATIONS)})


def compilation() -> dict[str, float]:
    """Seconds until the first fit of a process is there."""
    model = jclnf.load_openface(model_file("general"))
    loaded = time.perf_counter()
    (face,) = faces(["000"])
    crop = jclnf.crop(face.image, face.box, sizes=(SIDE,))
    first = timed(lambda: jclnf.fit(model, crop.image, crop.box, init=FRONTAL))
    done = time.perf_counter()
    second = timed(lambda: jclnf.fit(model, crop.image, crop.box, init=FRONTAL))
    return {
        "imports": IMPORTED - STARTED,
        "loading the model": loaded - IMPORTED,
        "first fit": first,
        "all but imports": done - IMPORTED,
        "total": done - STARTED,
        "second fit": second,
    }


def part(name: str, devices: int, cache: str | None, alternations: int) -> Any:
    """Run a part in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks", "--part", name]
    command += ["--devices", str(devices), "--alternations", str(alternations)]
    if cache is not None:
        command += ["--cache", cache]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compilations() -> dict[str, list[dict[str, float]]]:
    """Several processes without anything in the cache, and as many that find it filled."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "from the cache": []}
    for _ in range(COMPILATIONS):
        with tempfile.TemporaryDirectory() as cache:
            for taken in found.values():
                taken.append(part("compilation", 1, cache, 0))
    return found


def speed_rows(where: str, measured: dict[str, Any]) -> list[Row]:
    rows = []
    for name, work in measured["works"].items():
        taken, ratios = work["seconds"], work["by C++"]
        at = where, len(taken)
        ratio = statistics.median(ratios)
        limit = BY_CPP.get(name)
        rows += [
            Row(f"{name}: a fit, median", *at, 1e3 * statistics.median(taken), unit="ms"),
            Row(f"{name}: by a C++ fit, median", *at, ratio, limit),
            Row(f"{name}: by a C++ fit, smallest", *at, min(ratios)),
            Row(f"{name}: by a C++ fit, largest", *at, max(ratios)),
        ]
    cpp = measured["C++, estimated"]
    name = "C++ fit, estimated by calibrate.py, median"
    return [*rows, Row(name, where, len(cpp), 1e3 * statistics.median(cpp), unit="ms")]


def compilation_rows(measured: dict[str, list[dict[str, float]]]) -> list[Row]:
    rows = []
    for where, limit in (("cold", COLD), ("from the cache", CACHED)):
        runs = measured[where]
        for name in runs[0]:
            asked = limit if name in ("first fit", "all but imports") else None
            median = statistics.median(run[name] for run in runs)
            rows.append(Row(name, where, len(runs), median, asked, unit="s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alternations", type=int, default=9)
    parser.add_argument("--part", choices=("batch", "single", "compilation"))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--cache")
    args = parser.parse_args()
    if args.part:
        jax.config.update("jax_num_cpu_devices", args.devices)
        if args.cache:
            jclnf.enable_compilation_cache(args.cache)
        parts = {"batch": batch, "single": single}
        taken = compilation() if args.part == "compilation" else parts[args.part](args.alternations)
        print(json.dumps(taken))
        return

    load_before = os.getloadavg()
    batched = part("batch", 2, None, args.alternations)
    one = part("single", 1, None, args.alternations)
    compiled = compilations()
    speed = [
        *speed_rows(f"batch of {FACES}, 2 devices", batched),
        *speed_rows("single fits, 1 device", one),
    ]
    start = compilation_rows(compiled)
    loads = ", ".join(f"{value:.2f}" for value in load_before)
    body = f"""## A fit

OpenFace's general CCNF model ("model"; one start, windows 11-9-7, 5+5 iterations, exact arithmetic)
and the bundled default with its own settings; medians of {args.alternations} alternations with
`calibrate.py`. Batches include cropping and transfers; their model is also replicated over the
devices beforehand.

{pivot(speed)}

## The first fit of a process

Median of {COMPILATIONS} processes; "first fit" is tracing, compiling (or reading the cache) and
fitting, of one call of `jclnf.fit` with a prepared model.

{pivot(start)}

Load of the machine before the run (1, 5, 15 minutes): {loads}."""
    numbers = {
        "rows": [*speed, *start],
        "load before": load_before,
        "batch": batched,
        "single": one,
        "compilation": compiled,
    }
    write_results(HERE, "Speed of a fit on the CPU", body, numbers)


if __name__ == "__main__":
    main()
