"""`jclnf eval`: a model's errors on annotated faces."""

import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jclnf
from jclnf.annotations import AnnotatedFace, BoxTable, read_annotations
from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._commands import Eval
from jclnf.cli._settings import fit_params, start_jax
from jclnf.evaluation import (
    CHUNK,
    MEASURES,
    NOT_READ,
    Evaluation,
    Statistics,
    Summary,
    draw_curves,
    evaluate,
    face_errors,
    start_box,
)
from jclnf.fitting import FitStatus
from jclnf.images import read_image
from jclnf.outputs import claim, make_folder, write_bytes
from jclnf.runtime import Meter, silent_stderr, use_all_cores


def run(options: Eval) -> int:
    """Fit all faces and write their errors; return the exit code that the help describes."""
    faces = read_annotations(
        options.data,
        split=options.split,
        note=lambda line: None if options.quiet else complain(line),
    )
    boxes, source = start_boxes(options.boxes, faces)
    out = options.out
    make_folder(out)
    inputs = [options.data, *([] if options.boxes is None else [options.boxes])]
    claim(out, "eval", fixed=("errors.csv", "summary.json", "curve.png"), inputs=inputs)
    fits, about = _evaluate(options, faces, boxes)
    about = {
        "model": options.model,
        "data": options.data,
        "split": options.split,
        "start boxes": source,
        **about,
        "status": dict(Counter(map(_status, fits.status.tolist()))),
    }
    summary = fits.summary()
    write_bytes(out / "errors.csv", _table(faces, boxes, fits).encode(errors="surrogateescape"))
    write_bytes(out / "summary.json", _json({**about, **dataclasses.asdict(summary)}).encode())
    _draw(out, fits)
    if not options.quiet:
        head = "\n".join(f"{name}: {value}" for name, value in about.items() if value is not None)
        print("\n".join(map(printable, head.splitlines())))
        print(f"\n{tables(summary)}\n\nerrors of each face in {printable(str(out))}/errors.csv")
    return INCOMPLETE if fits.problems else OK


def start_boxes(file: str | None, faces: Sequence[AnnotatedFace]) -> tuple[list[Any], str]:
    """The start boxes, None where there is none, and in words where they come from."""
    if file is None:
        own = sum(face.box is not None for face in faces)
        counts = {"those of the data": own, "extent of the true landmarks": len(faces) - own}
        source = ", ".join(f"{name} ({count} faces)" for name, count in counts.items() if count)
        return [start_box(face) for face in faces], source

    table = BoxTable(file)
    annotated = Counter(face.image for face in faces)
    left = {image: table.boxes(image) for image in annotated}
    for image, found in left.items():
        if found and len(found) != annotated[image]:
            raise CommandError(
                f"{file}: {len(found)} boxes of {image}, in which {annotated[image]} faces "
                "are annotated: give as many, in the same order"
            )
    numbered = _numbers(faces)
    boxes = [
        left[face.image][number] if left[face.image] else None
        for face, number in zip(faces, numbered, strict=True)
    ]
    return boxes, file


def _numbers(faces: Sequence[AnnotatedFace]) -> list[int]:
    """The number of each face among those of its image."""
    seen: Counter[Path] = Counter()
    numbers = []
    for face in faces:
        numbers.append(seen[face.image])
        seen[face.image] += 1
    return numbers


def _evaluate(
    options: Eval, faces: Sequence[AnnotatedFace], boxes: Sequence[Any]
) -> tuple[Evaluation, dict[str, Any]]:
    """The fits, and what is to be known of how they were made."""
    use_all_cores(CHUNK)
    start_jax(options)

    def read(path: Path) -> np.ndarray:
        with silent_stderr():
            return read_image(path)

    def problem(_: int, text: str) -> None:
        complain(text)

    model = jclnf.load_model(options.model)
    params = fit_params(options, model)
    try:
        with Meter("fitting", len(faces), unit="faces", quiet=options.quiet) as meter:
            fits = evaluate(
                model,
                faces,
                params,
                boxes=boxes,
                read=read,
                on_problem=problem,
                on_progress=meter.step,
            )
    except jax.errors.JaxRuntimeError as e:  # too little memory, mostly
        raise CommandError(f"JAX could not run the fits: {str(e).splitlines()[0]}") from e
    about = {
        "starts": 1 if params.rotations is None else len(params.rotations),
        "arithmetic": options.arithmetic or "as the model has it",
        "windows": list(params.windows),
        "iterations": params.iterations,
        "jclnf": jclnf.__version__,
    }
    return fits, about


def _status(status: int) -> str:
    return "not_read" if status == NOT_READ else FitStatus(status).name.lower()


def _table(faces: Sequence[AnnotatedFace], boxes: Sequence[Any], fits: Evaluation) -> str:
    """The errors of each face as CSV; a number that is not known is an empty field."""
    errors = face_errors(fits.landmarks, fits.truth)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sides = [f"box_{side}" for side in "xywh"]
    names = ["weak_yaw_degrees", *(f"nme_{name}" for name in errors)]
    writer.writerow(["image", "face", "status", "likelihood", *sides, *names])
    for i, (face, number) in enumerate(zip(faces, _numbers(faces), strict=True)):
        box = (np.nan,) * 4 if boxes[i] is None else boxes[i]
        numbers = [*box, np.rad2deg(fits.yaw[i]), *(values[i] for values in errors.values())]
        writer.writerow(
            [face.image, number, _status(int(fits.status[i])), _number(fits.likelihood[i], 6)]
            + [_number(value, 4) for value in numbers]
        )
    return text.getvalue()


def _number(value: float, decimals: int) -> str:
    return f"{value:z.{decimals}f}" if math.isfinite(value) else ""


def _json(value: dict[str, Any]) -> str:
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: plain(part) for name, part in item.items()}
        # JSON has neither infinity nor NaN.
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), indent=1) + "\n"


def _draw(out: Path, fits: Evaluation) -> None:
    errors = face_errors(fits.landmarks, fits.truth)
    shown = {MEASURES[name]: values for name, values in errors.items()}
    try:
        image = draw_curves(shown, label="mean error of a face")
    except ImportError:
        complain("curve.png is not drawn: matplotlib is missing; pip install 'jclnf[plots]'")
        return
    write_bytes(out / "curve.png", image)


def tables(summary: Summary) -> str:
    """The figures of a summary as Markdown tables."""
    main = "all_eye" if "all_eye" in summary.measures else "all_box"
    measured = {MEASURES[name]: stats for name, stats in summary.measures.items()}
    groups = {f"{name}, eye distance": stats for name, stats in summary.groups.items()}
    return "\n\n".join(
        _markdown(title, rows)
        for title, rows in (
            ("mean error, %", {**measured, **groups}),
            (f"by weak-perspective yaw, degrees ({MEASURES[main]})", summary.yaw),
        )
        if rows
    )


def _markdown(title: str, rows: dict[str, Statistics]) -> str:
    header = ("faces", "not fitted", "mean", "median", "90 %", "over 8 %", "over 10 %")
    lines = [[title, *header, "AUC to 8 %", "to 10 %"], ["---"] * (len(header) + 3)]
    for name, s in rows.items():
        sizes = [f"{v:.2f}" for v in (s.mean, s.median, s.p90)]
        parts = [f"{100 * v:.1f} %" for v in (s.over_8, s.over_10)]
        areas = [f"{v:.3f}" for v in (s.auc_8, s.auc_10)]
        lines.append([name, str(s.faces), str(s.not_fitted), *sizes, *parts, *areas])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
