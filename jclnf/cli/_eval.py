"""`jclnf eval`: a model's errors on annotated faces."""

import argparse
import csv
import dataclasses
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jclnf.annotations import AnnotatedFace, read_annotations
from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._settings import add_settings, fit_params
from jclnf.errors import AnnotationError, BoxError, ModelFileError, ParamsError
from jclnf.evaluation import MEASURES, Statistics, Summary, face_errors
from jclnf.outputs import write_bytes

if TYPE_CHECKING:
    from jclnf.evaluation import Evaluation

_EPILOG = """\
data:
  a CSV file          columns image, x_0, y_0, x_1, y_1, ... and, if there are any, identity, split
                      and the face's box x, y, w, h; pixels count from 0; images are beside it, or
                      in the folder images beside it
  a folder            with such a file called landmarks.csv, or with images and .pts files of the
                      same names (as 300-W; pixels count from 1), in folders within it as well
  dlib's XML          images are named from the file's folder on

output:
  DIR/errors.csv      one row a face: image, face (its number in the image), status, likelihood,
                      start box, yaw in degrees, errors in % (columns nme_...)
  DIR/summary.json    all figures of the tables, and what was run
  DIR/curve.png       what part of the faces has at most which error (needs matplotlib)
Errors are means over a face's landmarks in % of the distance of its outer eye corners, or of
sqrt(width * height) of its landmarks' extent. "Offsets removed": without the median offset of each
landmark, which tells scatter from another idea of where a point is. Yaw is that of the model's
shape fitted to the annotation. Faces that were not fitted count as over every limit, and as the
worst in medians and percentiles, but cannot be part of a mean.

exit code:
  0  every face was fitted, well or badly
  1  some faces were not, because an image could not be read or a box not be used
  2  nothing could be done: wrong usage, no model, no data, no place to write
  130  interrupted, nothing is written

examples:
  jclnf eval default faces/ --split val --boxes faces/val_boxes.csv
  jclnf eval OpenFace/model/main_clnf_general.txt 300W/ --arithmetic openface --starts 1
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    p = subparsers.add_parser(
        "eval",
        help="measure a model's errors on annotated faces",
        description="Fit a model to annotated faces and measure its errors.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(run=run)
    p.add_argument(
        "model",
        metavar="MODEL",
        help="as `jclnf fit --model` takes it, or `default` for the model that comes with jclnf",
    )
    p.add_argument("data", metavar="DATA", help="annotated faces: a CSV or XML file, or a folder")
    p.add_argument("--split", metavar="NAME", help="only the faces of this split")
    p.add_argument(
        "--boxes",
        metavar="CSV",
        help="start boxes: a file with the columns image, x, y, w, h (default: the boxes in the "
        "data, and where there are none the extent of the true landmarks)",
    )
    p.add_argument("--out", metavar="DIR", default="eval", help="where to write (default: eval)")
    p.add_argument("--quiet", action="store_true", help="print errors only")
    add_settings(p)


def run(args: argparse.Namespace) -> int:
    """Fit all faces and write their errors; return the exit code that the help describes."""
    try:
        faces = read_annotations(args.data, split=args.split)
    except AnnotationError as e:
        raise CommandError(str(e)) from e
    boxes, source = start_boxes(args.boxes, faces)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CommandError(f"{out}: cannot be written: {e.strerror or e}") from e
    fits, about = _evaluate(args, faces, boxes)
    about = {
        "model": args.model,
        "data": args.data,
        "split": args.split,
        "start boxes": source,
        **about,
        "status": dict(Counter(map(_status, fits.status.tolist()))),
    }
    summary = fits.summary()
    _write(out, "errors.csv", _table(faces, boxes, fits).encode(errors="surrogateescape"))
    _write(out, "summary.json", _json({**about, **dataclasses.asdict(summary)}).encode())
    _draw(out, fits)
    if not args.quiet:
        head = "\n".join(f"{name}: {value}" for name, value in about.items() if value is not None)
        print("\n".join(map(printable, head.splitlines())))
        print(f"\n{tables(summary)}\n\nerrors of each face in {printable(str(out))}/errors.csv")
    return INCOMPLETE if fits.problems else OK


def start_boxes(file: str | None, faces: Sequence[AnnotatedFace]) -> tuple[list[Any], str]:
    """The start boxes, None where there is none, and in words where they come from."""
    if file is None:
        from jclnf.evaluation import start_box

        own = sum(face.box is not None for face in faces)
        counts = {"those of the data": own, "extent of the true landmarks": len(faces) - own}
        source = ", ".join(f"{name} ({count} faces)" for name, count in counts.items() if count)
        return [start_box(face) for face in faces], source

    from jclnf.annotations import BoxTable

    try:
        table = BoxTable(file)
    except BoxError as e:
        raise CommandError(str(e)) from e
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
    args: argparse.Namespace, faces: Sequence[AnnotatedFace], boxes: Sequence[Any]
) -> "tuple[Evaluation, dict[str, Any]]":
    """The fits, and what is to be known of how they were made."""
    import jax
    from tqdm import tqdm

    import jclnf
    from jclnf.evaluation import CHUNK, evaluate
    from jclnf.images import read_image
    from jclnf.runtime import silent_stderr, use_all_cores

    use_all_cores(CHUNK)
    jclnf.enable_compilation_cache()

    def read(path: Path) -> np.ndarray:
        with silent_stderr():
            return read_image(path)

    def progress(done: int) -> None:
        bar.update(done)

    def problem(_: int, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            complain(text)

    try:
        model = jclnf.load_model(None if args.model == "default" else args.model)
        params = fit_params(args, model)
        with tqdm(total=len(faces), unit="face", disable=True if args.quiet else None) as bar:
            fits = evaluate(
                model,
                faces,
                params,
                boxes=boxes,
                read=read,
                on_problem=problem,
                on_progress=progress,
            )
    except (ModelFileError, ParamsError, AnnotationError) as e:
        raise CommandError(str(e)) from e
    except jax.errors.JaxRuntimeError as e:  # too little memory, mostly
        raise CommandError(f"JAX could not run the fits: {str(e).splitlines()[0]}") from e
    about = {
        "starts": 1 if params.rotations is None else len(params.rotations),
        "arithmetic": args.arithmetic or "as the model has it",
        "windows": list(params.windows),
        "iterations": params.iterations,
        "jclnf": jclnf.__version__,
    }
    return fits, about


def _status(status: int) -> str:
    from jclnf.evaluation import NOT_READ
    from jclnf.fitting import FitStatus

    return "not_read" if status == NOT_READ else FitStatus(status).name.lower()


def _table(faces: Sequence[AnnotatedFace], boxes: Sequence[Any], fits: "Evaluation") -> str:
    """The errors of each face as CSV; a number that is not known is an empty field."""
    errors = face_errors(fits.landmarks, fits.truth)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sides = [f"box_{side}" for side in "xywh"]
    names = [f"nme_{name}" for name in errors]
    writer.writerow(["image", "face", "status", "likelihood", *sides, "yaw_degrees", *names])
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


def _draw(out: Path, fits: "Evaluation") -> None:
    from jclnf.evaluation import draw_curves

    errors = face_errors(fits.landmarks, fits.truth)
    shown = {MEASURES[name]: values for name, values in errors.items()}
    try:
        picture = draw_curves(shown, label="mean error of a face")
    except ImportError:
        complain("curve.png is not drawn: matplotlib is missing; pip install 'jclnf[plots]'")
        return
    _write(out, "curve.png", picture)


def _write(out: Path, name: str, data: bytes) -> None:
    try:
        write_bytes(out / name, data)
    except OSError as e:
        raise CommandError(f"{out / name}: cannot be written: {e.strerror or e}") from e


def tables(summary: Summary) -> str:
    """The figures of a summary as Markdown tables."""
    main = "all_eye" if "all_eye" in summary.measures else "all_box"
    measured = {MEASURES[name]: stats for name, stats in summary.measures.items()}
    groups = {f"{name}, eye distance": stats for name, stats in summary.groups.items()}
    return "\n\n".join(
        _markdown(title, rows)
        for title, rows in (
            ("mean error, %", {**measured, **groups}),
            (f"by yaw, degrees ({MEASURES[main]})", summary.yaw),
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
