"""How long a tracker takes for a frame of a video with one face, and where the time goes.

OpenFace's model with its part models and its validator, as its own program for videos has them. The
frames are decoded beforehand: this is the tracker alone. Run it on an otherwise idle machine; the
load before it began is recorded.
"""

import argparse
import itertools
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jclnf
import jclnf.tracking
from experiments.common import Row, grey_frames, model_file, pivot, write_results
from experiments.timing import cpp_fit, timed
from jclnf.fitting import cpu_options, fit_from
from jclnf.fitting._parts import fit_parts

HERE = Path(__file__).resolve().parent

CLIP = "default.wmv"
START = (147.371, 179.350, 190.917, 197.191)
ALTERNATIONS = 5
FRAMES_A_SECOND = 100


def stages(
    model: jclnf.Model, frame: np.ndarray, face: jclnf.tracking.TrackedFace
) -> dict[str, Any]:
    """Each stage of a frame as a compiled function of its own, on the whole frame."""
    settings = jclnf.TrackParams.openface(model).tracking
    result = face.result
    options = dict(cpu_options(model))
    whole = jax.jit(
        lambda model, image, pose, shape: fit_from(
            model, image, pose, shape, settings
        ).without_trace(),
        compiler_options=options,
    )
    parts = jax.jit(
        lambda model, image, result: fit_parts(model, image, result, settings),
        compiler_options=options,
    )
    trust = jax.jit(
        lambda model, image, result: model.confidence(image, result.landmarks, result.pose.rotation)
    )
    return {
        "face": lambda: whole(model, frame, result.pose, result.shape),
        "parts": lambda: parts(model, frame, result),
        "confidence": lambda: trust(model, frame, result),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100, help="frames that are tracked")
    count = parser.parse_args().frames
    load = os.getloadavg()[0]
    model = jclnf.load_openface(model_file("general"), parts=True, validator=True)
    params = jclnf.TrackParams.openface(model)
    tracker = jclnf.Tracker(model, params, single=True)
    frames = list(itertools.islice(grey_frames(CLIP), count))
    (face,) = tracker.step(frames[0], START)
    tracker.step(frames[1])
    prepared = jax.device_put(model.prepare(params.detection))
    works = stages(prepared, frames[1], face)
    for work in works.values():
        jax.block_until_ready(work())

    steps: list[float] = []
    cpu: list[float] = []
    cpp: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ALTERNATIONS):
        cpp.append(1e3 * cpp_fit(5))
        tracker.reset()
        tracker.step(frames[0], START)
        for frame in frames[1:]:
            before = time.process_time()
            steps.append(1e3 * timed(lambda frame=frame: tracker.step(frame)[0].result.landmarks))
            cpu.append(1e3 * (time.process_time() - before))
        for name, work in works.items():
            taken[name] += [1e3 * timed(work) for _ in range(20)]
    asked = 1e3 / FRAMES_A_SECOND
    rows = []
    for where, pick in (("median", np.median), ("fastest tenth", lambda v: np.quantile(v, 0.1))):
        rows += [
            Row("a step", where, len(steps), float(pick(steps)), asked, unit="ms"),
            Row("processor time of a step", where, len(cpu), float(pick(cpu)), unit="ms"),
            *(
                Row(f"alone: {name}", where, len(v), float(pick(v)), unit="ms")
                for name, v in taken.items()
            ),
            Row("C++ fit of an image, estimated", where, len(cpp), float(pick(cpp)), unit="ms"),
        ]
    body = (
        f"{CLIP}, {frames[0].shape[1]} x {frames[0].shape[0]} pixels, one face, "
        f"{len(frames)} frames. Load before it began: {load:.1f}.\n\n" + pivot(rows)
    )
    folder = HERE / "video_speed"
    write_results(folder, "A tracker's step", body, {"load": load, "rows": rows})


if __name__ == "__main__":
    main()
