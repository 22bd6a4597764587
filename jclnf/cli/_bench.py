"""`jclnf bench`: how fast jclnf is on this machine."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import tqdm

import jclnf
from jclnf.cli._base import OK, CommandError, printable
from jclnf.cli._commands import Bench
from jclnf.cli._settings import start_jax
from jclnf.detect import default, find_faces
from jclnf.images import read_image
from jclnf.outputs import replacing
from jclnf.runtime import available_cores, device_report, use_all_cores

FORMAT = "jclnf-bench/1"
"""Of the JSON file: changes with the meaning of what is there already."""
SECONDS = 2.0
"""How long each figure is measured for, at least."""
BATCHES = (32,), (1, 8, 32, 128, 1024)
"""Faces in a batch, in short and in full."""
FRAME = (480, 640)

_FIRST = """
import sys
import jclnf
from jclnf.runtime import enable_compilation_cache
enable_compilation_cache(sys.argv[3])
image = jclnf.images.read_image(sys.argv[2])
box = jclnf.detect.find_faces(jclnf.detect.default(), image)[0]
jclnf.fit(jclnf.load_model(sys.argv[1]), image, box).landmarks.block_until_ready()
"""


def run(options: Bench) -> int:
    """Measure; return the exit code."""
    use_all_cores(64)
    start_jax(options)
    path = _photograph() if options.image is None else options.image
    image = read_image(path)
    model = jclnf.load_model(options.model)
    boxes = find_faces(default(), image)
    if len(boxes) == 0:
        raise CommandError(f"{path}: no face was found in it: give an image of one, with --image")
    rows = []
    measures = _measures(options, model, path, image, boxes[0])
    for what, batch, measure in tqdm.tqdm(measures, disable=options.quiet, leave=False):
        seconds = measure()
        rows.append(
            {
                "what": what,
                "faces": batch,
                "milliseconds": 1e3 * seconds / batch,
                "per_second": batch / seconds,
            }
        )
    record = {"format": FORMAT, "machine": _machine(), "model": options.model, "rows": rows}
    if options.out is not None:
        with replacing(options.out) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")
    print(printable(_headline(record)))
    print(f"{'':44}{'ms a face':>12}{'a second':>12}")
    for row in rows:
        print(f"{row['what']:44}{row['milliseconds']:12.2f}{row['per_second']:12.1f}")
    return OK


def _measures(
    options: Bench, model: Any, path: Path, image: np.ndarray, box: np.ndarray
) -> list[tuple[str, int, Callable[[], float]]]:
    """What is measured: its name, how many faces that takes, and the seconds that they take."""
    cache = tempfile.TemporaryDirectory()

    def first() -> float:
        start = time.perf_counter()
        command = [sys.executable, "-c", _FIRST, options.model, os.fspath(path), cache.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CommandError(f"a fresh process failed: {done.stderr.strip()[-200:]}")
        return time.perf_counter() - start

    def batch(count: int) -> Callable[[], float]:
        return lambda: _median(lambda: jclnf.fit_images(model, [image] * count, [box] * count))

    def gradient() -> float:
        crop = jclnf.crop(image, box)

        def size(params: jclnf.FitParams) -> jax.Array:
            return (
                jclnf.fit(model, jax.numpy.asarray(crop.image), crop.box, params).landmarks ** 2
            ).sum()

        slope = jax.jit(jax.value_and_grad(size))
        params = model.defaults.replace(derivatives="rematerialised")
        return _median(lambda: jax.block_until_ready(slope(params)))

    def one() -> None:
        jclnf.fit(model, image, box).landmarks.block_until_ready()

    found: list[tuple[str, int, Callable[[], float]]] = [
        ("first landmarks of a process, nothing compiled", 1, first),
        ("first landmarks of a process, all compiled", 1, first),
        ("one face", 1, lambda: _median(one)),
        *((f"batch of {count}", count, batch(count)) for count in BATCHES[options.full]),
        ("video of 640x480, one face", 1, lambda: _video(model, image, box)),
    ]
    if options.full:
        found.append(("value and gradient with respect to settings", 1, gradient))
    return found


def _median(work: Callable[[], Any]) -> float:
    """Median of the seconds that something takes, after it was done twice."""
    for _ in range(2):
        work()
    seconds: list[float] = []
    while len(seconds) < 5 or sum(seconds) < SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _video(model: Any, image: np.ndarray, box: np.ndarray) -> float:
    """Seconds a frame takes that is read, with the face moving to and fro in it."""
    height, width = FRAME
    scale = 0.4 * height / box[3]
    middle = box[:2] + box[2:] / 2
    frames = []
    for turn in np.linspace(0, 2 * np.pi, 32, endpoint=False):
        shift = np.array([width, height]) / 2 + 6 * np.array([np.cos(turn), np.sin(turn)])
        matrix = np.column_stack([scale * np.eye(2), shift - scale * middle])
        frames.append(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_AREA))
    tracker = jclnf.Tracker(model, detector=default())
    for frame in frames:
        tracker.step(frame)
    seconds: list[float] = []
    while not seconds or sum(seconds) < SECONDS:
        for frame in frames:
            start = time.perf_counter()
            faces = tracker.step(frame)
            jax.block_until_ready([face.result.landmarks for face in faces])
            seconds.append(time.perf_counter() - start)
    return float(np.mean(seconds))


def _photograph() -> Path:
    """The photograph of a face that comes with matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise CommandError(
            "there is no photograph of a face to measure with: give one with --image, or install "
            "jclnf's extra plots, whose matplotlib brings one"
        )
    return Path(found.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"


def _machine() -> dict[str, Any]:
    """Where it was measured."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "system": platform.platform(),
        "processor": name,
        "cores": available_cores(),
        "device": device_report(),
        "devices": jax.local_device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jclnf": jclnf.__version__,
    }


def _headline(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"jclnf {machine['jclnf']}, jax {machine['jax']}, Python {machine['python']}, "
        f"{machine['device']['platform']}, {machine['processor']}, {machine['cores']} cores, "
        f"model {record['model']}"
    )
