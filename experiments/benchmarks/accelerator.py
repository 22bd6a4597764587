"""How fast an accelerator fits, how near to what it can do, and how far its landmarks are from a
CPU's.

    python -m experiments.benchmarks.accelerator

32 faces in boxes that are off by a little, otherwise for each of up to 1024: OpenFace's general
model (frontal start) and the bundled one, `jax.jit(jax.vmap(...))` of `jclnf.fit` of crops that are
on the device, the same with their upload, and `jclnf.fit_images` of NumPy images. In the precisions
that JAX offers for products and convolutions. Ceilings are measured in the same run: large products
of matrices, and a large copy.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jclnf
from experiments.common import command_line, faces, model_file, table, write_results
from experiments.timing import timed
from jclnf.openface import FRONTAL

HERE = Path(__file__).resolve().parent / "accelerator"
FACES, LARGEST, ROUNDS = 32, 1024, 9
BATCHES = (1, 32, 256, LARGEST)
PRECISIONS = ("default", "bfloat16", "highest")
SIDE = 256
"""Of the crops in pixels."""


def cases(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and boxes, the first `FACES` of them as they were recorded."""
    known = [face for face in faces() if len(jclnf.crop(face.image, face.box).image) <= SIDE]
    known = known[:FACES]
    images = [known[i % FACES].image for i in range(count)]
    boxes = np.stack([known[i % FACES].box for i in range(count)])
    rng = np.random.default_rng(0)
    moved = boxes[:, 2:].mean(1, keepdims=True) * rng.normal(0, 0.02, (count, 2))
    moved[:FACES] = 0
    return images, boxes + np.pad(moved, [(0, 0), (0, 2)]).astype(np.float32)


def models() -> dict[str, tuple[jclnf.Model, Any]]:
    """Each model, and where its fits start."""
    return {
        "OpenFace's model": (jclnf.load_openface(model_file("general")), FRONTAL),
        "bundled default": (jclnf.load_model(), None),
    }


def fits(model: jclnf.Model, init: Any) -> Callable[..., Any]:
    """The fit of a batch of crops, compiled: landmarks and confidences."""

    def one(image: jax.Array, box: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jclnf.fit(model, image, box, init=init)
        return found.landmarks, found.confidence

    return jax.jit(jax.vmap(one))


def crops(count: int) -> tuple[np.ndarray, np.ndarray]:
    images, boxes = cases(count)
    cut = [jclnf.crop(*case, sizes=(SIDE,)) for case in zip(images, boxes, strict=True)]
    return np.stack([one.image for one in cut]), np.stack([one.box for one in cut])


def on_cpu(path: str) -> None:
    """Landmarks of the first faces by a CPU, for comparison, and the operations of a large batch,
    as XLA counts them before a device's libraries take over (which it tells for CPUs alone)."""
    seen, many = crops(FACES), crops(LARGEST)
    found: dict[str, Any] = {}
    for name, (model, init) in models().items():
        each = [jclnf.fit(model, jnp.asarray(i), b, init=init) for i, b in zip(*seen, strict=True)]
        found[name] = np.stack([np.asarray(one.landmarks) for one in each])
        found[f"{name}: operations"] = fits(model, init).lower(*many).cost_analysis()["flops"]
    np.savez(path, **found)


def reference() -> dict[str, np.ndarray]:
    """What `on_cpu` finds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "cpu.npz")
        command = [sys.executable, "-m", "experiments.benchmarks.accelerator", "--cpu", path]
        subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        with np.load(path) as arrays:
            return dict(arrays)


def note(*words: object) -> None:
    """Say what was found at once: a lent machine may be gone before the end."""
    print(*words, flush=True)


def median(work: Callable[[], Any]) -> float:
    """Seconds, after it was done twice."""
    return float(np.median([timed(work) for _ in range(ROUNDS + 2)][2:]))


def ceilings() -> dict[str, float]:
    """Operations a second in products of large matrices, bytes a second read and written."""
    square, long = jnp.ones((8192, 8192)), jnp.ones(2**29)
    found = {}
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            product = jax.jit(jnp.matmul).lower(square, square).compile()
        found[precision] = 2 * 8192**3 / median(functools.partial(product, square, square))
    add = jax.jit(lambda x: x + 1)
    found["bytes"] = 2 * long.nbytes / median(lambda: add(long))
    return found


def programs(
    known: dict[str, tuple[jclnf.Model, Any]], seen: tuple[np.ndarray, np.ndarray]
) -> dict[tuple[str, str, int], Any]:
    """Compiled fits by model, precision and faces in a batch; compiled side by side."""
    lowered = {}
    for name, (model, init) in known.items():
        for precision in PRECISIONS:
            with jax.default_matmul_precision(precision):
                for count in BATCHES if precision == "default" else (LARGEST,):
                    batch = tuple(array[:count] for array in seen)
                    lowered[name, precision, count] = fits(model, init).lower(*batch)
    note(f"{len(lowered)} programs to compile")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda one: one.compile(), lowered.values()))
    note("compiled")
    return dict(zip(lowered, compiled, strict=True))


def main() -> None:
    """Measure, print and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--cpu", help="write landmarks by this process to a file, and nothing else")
    args = parser.parse_args()
    if args.cpu:
        on_cpu(args.cpu)
        return
    device, used = jax.devices()[0], models()
    images, boxes = cases(LARGEST)
    seen = crops(LARGEST)
    with ThreadPoolExecutor(1) as other:
        by_cpu = other.submit(reference)
        compiled = programs(used, seen)
        beside = by_cpu.result()
    most = ceilings()
    note(most)
    speeds, apart, numbers = [], [], {"device": device.device_kind, "ceilings": most}
    for name, (model, init) in used.items():
        rates, measured = [], numbers.setdefault(name, {})
        for count in BATCHES:
            work = compiled[name, "default", count]
            batch = jax.device_put(tuple(array[:count] for array in seen))
            rates.append(count / median(functools.partial(work, *batch)))
        rates.append(LARGEST / median(functools.partial(work, *seen)))
        whole = functools.partial(jclnf.fit_images, model, images, boxes, init=init)
        rates.append(LARGEST / median(whole))
        measured["fits a second"] = rates
        note(name, rates)
        speeds.append([name, *(f"{rate:,.0f}" for rate in rates)])
        for precision in PRECISIONS:
            program = compiled[name, precision, LARGEST]
            seconds = median(functools.partial(program, *batch))
            found = np.asarray(program(*batch)[0][:FACES])
            away = np.linalg.norm(found - beside[name], axis=-1)
            operations = float(beside[f"{name}: operations"])
            moved = program.cost_analysis()["bytes accessed"]
            least = max(operations / most[precision], moved / most["bytes"])
            temporaries = program.memory_analysis().temp_size_in_bytes
            measured[precision] = {
                "seconds": seconds,
                "operations": operations,
                "bytes": moved,
                "least seconds": least,
                "bytes of temporaries": temporaries,
                "px away": away.max(1),
            }
            note(name, precision, measured[precision])
            apart.append(
                [
                    name,
                    precision,
                    f"{LARGEST / seconds:,.0f}",
                    f"{np.median(away):.5f}",
                    f"{away.max():.4f}",
                    f"{operations / LARGEST / 1e6:.0f}",
                    f"{moved / LARGEST / 1e6:.1f}",
                    f"{seconds / least:.1f}",
                    f"{temporaries / 1e9:.2f}",
                ]
            )
    write_results(HERE, "Fits on an accelerator", report(device, most, speeds, apart), numbers)


def report(device: Any, most: dict[str, float], speeds: list[Any], apart: list[Any]) -> str:
    products = ", ".join(f"{name} {most[name] / 1e12:.0f}" for name in PRECISIONS)
    counts = [*(f"batch of {count}" for count in BATCHES), f"{LARGEST}, with upload"]
    head = ["precision", "fits a second", "px away, median", "most", "MFLOP a fit", "MB a fit"]
    head += ["times the least time", "GB of temporaries"]
    return (
        f"{device.device_kind}. Products of 8192 x 8192 matrices: {products} TFLOP/s; "
        f"{most['bytes'] / 1e12:.2f} TB/s read and written. Crops of {SIDE} x {SIDE} uint8 of "
        f"{FACES} faces; medians of {ROUNDS}.\n\n"
        + table(["fits a second", *counts, f"{LARGEST}, `fit_images`"], speeds)
        + f"\n\nBatches of {LARGEST}, by JAX's precision of products and convolutions; landmarks "
        f"beside those of this machine's CPU:\n\n{table(['', *head], apart)}\n\n"
        "Operations and bytes are as XLA counts them, loops once; the least time is that of the "
        "operations at the ceiling of the precision, or of the bytes, whichever is longer."
    )


if __name__ == "__main__":
    main()
