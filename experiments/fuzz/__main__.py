"""Feed damaged files to everything that reads files: does each read, or refuse in one line?

Files of each kind are truncated, have bits flipped, bytes taken out, repeated and put in, parts of
other files of their kind put into them, and numbers in them replaced by extreme ones. A process of
its own reads them, one after the other, with a limit on its memory; another one watches it. What
ends the process, takes more than ten seconds, or raises anything but a `JclnfError` of one line is
a failure; its file is kept in the folder jclnf-fuzz of the system's temporary files.
"""

import contextlib
import importlib
import json
import os
import queue
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from experiments.common import OPENFACE, command_line, table, write_results
from jclnf.errors import JclnfError

HERE = Path(__file__).resolve().parent
SECONDS = 10.0
BYTES = 2**30
EXTREMES = (-1, 0, 1, 255, 65535, 2**31 - 1, -(2**31), 0x7F800000)
WORDS = (b"-1", b"0", b"1e999", b"nan", b"inf", b"-inf", b"9" * 40, b"1e-320", b"x", b"", b"\xff")
OUTCOMES = ("read", "refused", "FAILED")
NUMBER = re.compile(rb"-?\d+\.?\d*(?:e[-+]?\d+)?")


class Kind(NamedTuple):
    """A kind of file: whole ones, made in a folder, and what reads one."""

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]


def texture() -> np.ndarray:
    image = np.random.default_rng(0).normal(128, 60, (60, 80, 3)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 2) * 3 - 250, 0, 255).astype(np.uint8)


def make_images(folder: Path) -> list[Path]:
    paths = [folder / f"face.{ending}" for ending in ("jpg", "png", "bmp", "tiff", "webp", "ppm")]
    for path in paths:
        cv2.imwrite(str(path), texture())
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    jpeg = paths[0].read_bytes()
    turned = folder / "turned.jpg"
    turned.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    return [*paths, turned]


def read_image(path: Path) -> None:
    from jclnf.images import read_image_file

    file = read_image_file(path)
    assert file.grey.ndim == 2
    assert file.grey.dtype == np.uint8


def make_videos(folder: Path) -> list[Path]:
    paths = []
    for ending, code in (("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "mp4v")):
        path = folder / f"clip.{ending}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 25, (80, 60))
        for by in range(12):
            writer.write(np.roll(texture(), by, axis=1))
        writer.release()
        with contextlib.suppress(JclnfError):  # OpenCV cannot write all of them everywhere
            read_video(path)
            paths.append(path)
    return paths


def read_video(path: Path) -> None:
    module = importlib.import_module("jclnf.video._open")
    source = module.open_source(path)
    last = -1.0
    for frame, _ in zip(source.frames(), range(500), strict=False):
        assert frame.time > last
        last = frame.time
    assert all("\n" not in problem for problem in source.problems)


def landmarks_of(face: int) -> list[str]:
    points = np.random.default_rng(face).uniform(5, 55, (68, 2))
    return [f"{value:.2f}" for value in points.ravel()]


def make_tables(folder: Path) -> list[Path]:
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), texture())
    names = [f"{axis}_{i}" for i in range(68) for axis in "xy"]
    rows = [["image", "identity", "split", *names]]
    rows += [[f"{n}.png", str(n), "val", *landmarks_of(n)] for n in range(3)]
    plain = folder / "landmarks.csv"
    plain.write_text("".join(",".join(row) + "\n" for row in rows))
    quoted = folder / "quoted.csv"
    quoted.write_text("".join(",".join(f'"{cell}"' for cell in row) + "\r\n" for row in rows))
    return [plain, quoted]


def make_pts(folder: Path) -> list[Path]:
    cv2.imwrite(str(folder / "one.png"), texture())
    values = landmarks_of(0)
    points = "".join(f"{x} {y}\n" for x, y in zip(values[::2], values[1::2], strict=True))
    path = folder / "one.pts"
    path.write_text(f"version: 1\nn_points: 68\n{{\n{points}}}\n")
    return [path]


def make_xml(folder: Path) -> list[Path]:
    cv2.imwrite(str(folder / "one.png"), texture())
    values = landmarks_of(0)
    parts = "".join(
        f"<part name='{i:02d}' x='{values[2 * i]}' y='{values[2 * i + 1]}'/>\n" for i in range(68)
    )
    path = folder / "faces.xml"
    path.write_text(
        "<?xml version='1.0' encoding='UTF-8'?>\n<dataset>\n<name>faces</name>\n<images>\n"
        f"<image file='one.png'>\n<box top='5' left='5' width='50' height='50'>\n{parts}</box>\n"
        "</image>\n</images>\n</dataset>\n"
    )
    return [path]


def read_annotated(path: Path) -> None:
    from jclnf.annotations import read_annotations

    for one in read_annotations(path):
        assert np.isfinite(one.landmarks).all()


def make_boxes(folder: Path) -> list[Path]:
    path = folder / "boxes.csv"
    path.write_text("image,x,y,w,h\n" + "".join(f"a/{n}.png,1.5,{n},30,40\n" for n in range(9)))
    return [path]


def read_boxes(path: Path) -> None:
    from jclnf.annotations import BoxTable

    assert np.isfinite(np.array(BoxTable(path).boxes("a/1.png"), float)).all()


def make_frame_boxes(folder: Path) -> list[Path]:
    path = folder / "frames.csv"
    path.write_text(
        "video,frame,x,y,w,h\n" + "".join(f"a.mp4,{n},1.5,2,30,40\n" for n in range(1, 9))
    )
    return [path]


def read_frame_boxes(path: Path) -> None:
    from jclnf.annotations import FrameBoxTable

    for boxes in FrameBoxTable(path).boxes("a.mp4").values():
        assert np.isfinite(np.array(boxes, float)).all()


def make_model(folder: Path) -> list[Path]:
    import jclnf
    from tests.support.synthetic import planted

    path = folder / "model.safetensors"
    jclnf.save_model(planted().model, path)
    return [path]


def read_model(path: Path) -> None:
    import jax

    import jclnf

    for leaf in jax.tree.leaves(jclnf.load_model(path)):
        array = np.asarray(leaf)
        assert array.dtype.kind != "f" or np.isfinite(array).all()


def openface(name: str, read: str, *arguments: Any) -> Kind:
    """A kind of OpenFace's model files, with its reader in the room `openface`."""

    def make(folder: Path) -> list[Path]:
        return [Path(shutil.copy(OPENFACE / name, folder))]

    def reads(path: Path) -> None:
        module, function = read.split(":")
        getattr(importlib.import_module(f"jclnf.openface.{module}"), function)(path, *arguments)

    return Kind(make, reads)


MODEL = "model/detection_validation/validator_cnn_68.txt"
KINDS = {
    "image": Kind(make_images, read_image),
    "video": Kind(make_videos, read_video),
    "annotations, CSV": Kind(make_tables, read_annotated),
    "annotations, .pts": Kind(make_pts, read_annotated),
    "annotations, XML": Kind(make_xml, read_annotated),
    "boxes": Kind(make_boxes, read_boxes),
    "boxes of frames": Kind(make_frame_boxes, read_frame_boxes),
    "model": Kind(make_model, read_model),
    "OpenFace, shape model": openface("model/pdms/In-the-wild_aligned_PDM_68.txt", "_pdm:read_pdm"),
    "OpenFace, CCNF": openface(
        "model/model_inner/patch_experts/ccnf_patches_1.00_inner.txt", "_ccnf:read_ccnf_scale", 51
    ),
    "OpenFace, SVR": openface(
        "model/patch_experts/svr_patches_0.25_general.txt", "_svr:read_svr_scale", 68
    ),
    "OpenFace, CEN": openface("synthetic_cen/cen_patches_0.25_of.dat", "_cen:read_cen_scale", 68),
    "OpenFace, validator": openface(MODEL, "_read_validator:read_validator", 68),
}


def damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Contents of a file damaged in one way or a few; `other` is of another of its kind."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        # Headers are at the start, where most of the damage is to be.
        at = rng.randrange(rng.choice((min(len(changed), 400), len(changed))))
        size = rng.choice((1, 4, 40, 4096))
        kind = rng.randrange(8)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at : at + 4] = struct.pack(f"{rng.choice('<>')}i", rng.choice(EXTREMES))
        elif kind == 3:
            del changed[at : at + size]
        elif kind == 4:
            changed[at:at] = changed[at : at + size] * rng.choice((1, 1, 50))
        elif kind == 5:
            start = rng.randrange(len(other))
            changed[at : at + rng.choice((0, size))] = other[start : start + size]
        elif kind == 6:
            changed[at : at + size] = rng.randbytes(min(size, 40))
        elif found := NUMBER.search(changed, at):
            changed[found.start() : found.end()] = rng.choice(WORDS)
    return bytes(changed)


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    try:
        read(path)
    except JclnfError as error:
        text = str(error)
        if "\n" in text.strip() or not text.strip() or len(text) > 2000:
            return f"FAILED: not one line: {text[:200]!r}"
        return "refused"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:200]!r}"
    return "read"


def serve(name: str, first: int, count: int, folder: Path) -> None:
    """Read the damaged files of a kind, and print how each went; in a process of its own."""
    kind = KINDS[name]
    paths = [folder / line for line in (folder / "whole.txt").read_text().split("\n")]
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        kind.read(path)  # whatever is set up at the first use
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    for index in range(first, count):
        rng = random.Random(f"{name} {index}")
        which = rng.randrange(len(paths))
        paths[which].write_bytes(damaged(rng, whole[which], rng.choice(whole)))
        start = time.monotonic()
        result = outcome(kind.read, paths[which])
        said = {"index": index, "result": result, "seconds": time.monotonic() - start}
        if result.startswith("FAILED"):
            keep(name, index, paths[which])
        print(json.dumps(said), flush=True)
        paths[which].write_bytes(whole[which])


def keep(name: str, index: int, path: Path) -> None:
    folder = Path(tempfile.gettempdir()) / "jclnf-fuzz"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / f"{name} {index}{path.suffix}")


def forward(stream: Any, lines: "queue.SimpleQueue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def feed(name: str, count: int, folder: Path) -> tuple[Counter[str], float, list[str]]:
    """Have `count` damaged files of a kind read; what came of it, the longest time, failures."""
    whole = KINDS[name].make(folder)
    (folder / "whole.txt").write_text("\n".join(path.name for path in whole))
    intact = {path: path.read_bytes() for path in whole}
    tally: Counter[str] = Counter()
    longest, failures, first = 0.0, [], 0
    while first < count:
        command = [sys.executable, "-m", "experiments.fuzz", "--serve", name]
        command += ["--from", str(first), "--count", str(count), "--folder", str(folder)]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=forward, args=(child.stdout, lines), daemon=True).start()
        started, problem = False, ""
        while first < count and not problem:
            try:
                line = lines.get(timeout=SECONDS if started else 30 * SECONDS)
            except queue.Empty:
                line, problem = "", "hangs"
            if line == "":
                problem = problem or f"its process ended with {child.wait()}"
                break
            said, started = json.loads(line), True
            first, longest = said["index"] + 1, max(longest, said["seconds"])
            tally[said["result"].partition(":")[0]] += 1
            if said["result"].startswith("FAILED"):
                failures.append(f"{name} {said['index']}: {said['result']}")
        child.kill()
        child.wait()
        if problem and not started:
            raise SystemExit(f"{name}: {problem} before it has read a file")
        if problem:
            tally["FAILED"] += 1
            failures.append(f"{name} {first}: {problem}")
            for path in whole:
                if path.read_bytes() != intact[path]:
                    keep(name, first, path)
                path.write_bytes(intact[path])
            first += 1
    return tally, longest, failures


def main() -> None:
    parser = command_line(__doc__ or "")
    parser.add_argument("--count", type=int, default=10_000, help="files of each kind")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--serve", help="for the processes that this starts")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the same")
    parser.add_argument("--folder", type=Path, help="the same")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.first, options.count, options.folder)
        return
    kinds: dict[str, Any] = json.loads((HERE / "results.json").read_text())["kinds"]
    for name in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            tally, longest, failures = feed(name, options.count, Path(folder))
        kinds[name] = {
            "counts": {key: tally[key] for key in OUTCOMES},
            "slowest": longest,
            "failures": failures,
        }
        report(kinds)


def report(kinds: dict[str, Any]) -> None:
    """Write the results: of each kind those of its last run."""
    rows, said = [], []
    for name, found in kinds.items():
        counts = [found["counts"][key] for key in OUTCOMES]
        rows.append([name, sum(counts), *counts, f"{found['slowest']:.2f} s"])
        said += found["failures"]
    header = ["file", "damaged", "read", "refused in one line", "failed", "slowest"]
    body = table(header, rows) + "".join(f"\n- {failure}" for failure in said[:50])
    write_results(HERE, "Damaged files of every kind", body, {"kinds": kinds})


if __name__ == "__main__":
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    main()
