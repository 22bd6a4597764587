"""`jclnf fit`: landmarks of every face in images."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jclnf
from jclnf import draw
from jclnf.action_units import (
    ActionUnits,
    check_detector,
    describe_openface,
    load_action_units,
)
from jclnf.annotations import BoxTable
from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._commands import Fit
from jclnf.cli._face_table import FaceTable
from jclnf.cli._files import find_images
from jclnf.cli._fit_record import RECORD, TABLE, FitRecord
from jclnf.cli._openface import ImageTables
from jclnf.cli._settings import fit_params, start_jax
from jclnf.detect import check_min_face, default_name, find_faces, make_detector
from jclnf.errors import BoxError, ImageError, JclnfError, OutputError, ParamsError
from jclnf.files import find_model
from jclnf.fitting import Model
from jclnf.images import ImageFile, read_image_file
from jclnf.outputs import (
    Origin,
    abandon,
    claim,
    locked,
    make_folder,
    part_of,
    settle,
    write_png,
)
from jclnf.params import FitParams, on_host
from jclnf.runtime import check_interrupted, silent_stderr
from jclnf.space import Camera

_OVERLAY, _TABLE = "_overlay.png", ".csv"
"""How the names end of what is written for each image."""


def run(options: Fit) -> int:
    """Fit all faces of all images; return the exit code that the help describes."""
    if options.ray is not None:
        from jclnf.cli._fit_cluster import run as run_on_cluster

        return run_on_cluster(options)
    if options.workers is not None:
        raise CommandError("--workers is for --ray")
    found = find_images(options.paths)
    images, notes = found.files, found.notes
    for problem in found.problems:
        complain(problem)
    if options.boxes is not None:
        notes += BoxTable(options.boxes).left_out(images)
    for note in () if options.quiet else notes:
        complain(note)
    if options.box is not None and len(images) != 1:
        raise CommandError(
            f"--box is for one image, here are {len(images)}: give the boxes of several as --boxes"
        )
    if not images:
        return INCOMPLETE
    for name in ("full_precision", "csv_spaces"):
        if getattr(options, name) and not options.openface_csv:
            flag = name.replace("_", "-")
            raise CommandError(f"--{flag} is of the tables that --openface-csv writes")
    if options.au_models is not None and not options.aus:
        raise CommandError("--au-models is for --aus")
    Camera.assumed(640, 480, options.focal, options.centre)  # raises if there is no such camera
    if options.detector is None and options.box is None and options.boxes is None:
        name = default_name(options.model, openface=options.openface_csv)
        options = dataclasses.replace(options, detector=name)
    boxes = _box_source(options)
    start_jax(options)
    model = jclnf.load_model(options.model, parts=options.parts, validator=options.validator)
    params = fit_params(options, model)
    units = None
    if options.aus:
        check_detector(model)
        file = find_model(options.model or "default")
        units = load_action_units(options.au_models, static=True, model=file)
    make_folder(options.out)
    with locked(options.out / TABLE):
        complete = _fit_all(options, images, boxes, model, params, units)
    return OK if complete and not found.problems else INCOMPLETE


def _fit_all(
    options: Fit,
    images: list[Path],
    boxes: Callable[[ImageFile], Any],
    model: Model,
    params: FitParams,
    units: ActionUnits | None,
) -> bool:
    """Fit the faces of images; whether all of it could be done."""
    wanted = {_OVERLAY: options.overlay, _TABLE: options.openface_csv}
    stems = claim(
        options.out,
        "fit",
        fixed=(TABLE, RECORD),
        sources=[Origin("fit", os.path.abspath(image)) for image in images],
        stems=[image.stem for image in images],
        endings=[ending for ending in wanted if wanted[ending]],
        spared=[ending for ending in wanted if not wanted[ending]],
        inputs=[*images, *([] if options.boxes is None else [options.boxes])],
        anew=not options.resume,
    )
    record = FitRecord(options, model, units)
    names = [] if units is None else units.columns
    sizes = model.pdm.n_landmarks, model.pdm.n_modes
    table = FaceTable(options.out / TABLE, *sizes, record.left, names)
    in_space = None
    if options.openface_csv or options.focal is not None or options.centre is not None:
        style = options.full_precision, options.csv_spaces
        in_space = ImageTables(model, options.focal, options.centre, *style, names)
    task = _Task(options, model, params, boxes, table, in_space, units)
    results = [
        options.out / f"{stem}{ending}" for stem in stems for ending in wanted if wanted[ending]
    ]
    if table.failed and not options.quiet:
        complain(f"{table.path}: {table.failed} of its rows of before are without success")
    done = {path for image in table.done for path in record.absolute(image)}
    failed, before = table.failed, table.rows
    with table:
        record.begin(beside=table.beside)
        for path in () if record.left else results:
            abandon(path)
        for image, stem in zip(images, stems, strict=True):
            check_interrupted()
            if os.path.abspath(image) not in done:
                failed += not task.do(image, options.out / stem)
        if table.beside and table.rows == 0:
            for path in results:
                abandon(path)
            record.withdraw()
        else:
            for path in results:
                settle(path)
            record.complete()
    if not (table.rows or table.done or task.without_face):
        return False  # none was even looked at, and a line has said of each why
    faces = {0: "no face", 1: "1 face"}.get(table.rows) or f"{table.rows} faces"
    more = f", {before} of them before" if before else ""
    left = f"no face: {table.path} is left as it was"
    with contextlib.suppress(BrokenPipeError):
        task.say(left if table.rows == 0 and table.beside else f"{faces} in {table.path}{more}")
    return not failed


def _box_source(options: Fit) -> Callable[[ImageFile], Any]:
    """Gives the face boxes `(k, 4)` of an image: those of the options, or what is detected."""
    if options.min_face is not None and (options.box or options.boxes):
        raise CommandError(
            "--min-face is for faces that are looked for: leave out --box or --boxes"
        )
    check_min_face(options.min_face)
    if options.box is not None:
        return lambda _: [options.box]
    if options.boxes is not None:
        table = BoxTable(options.boxes)

        def listed(file: ImageFile) -> Any:
            if found := table.boxes(file.path):
                return found
            raise BoxError(f"no box for it in {options.boxes}")

        return listed
    detector = make_detector(options.detector)

    def detected(file: ImageFile) -> Any:
        found = find_faces(detector, file, min_face=options.min_face)
        if len(found) == 0:
            raise _NoFaceError(
                "no face found; if there is one, give its box as --box X,Y,W,H, or try "
                "another --detector"
            )
        return found[:1] if options.one else found

    return detected


class _NoFaceError(BoxError):
    """No face was found in an image."""


@dataclasses.dataclass(frozen=True)
class _Task:
    """The work on each image."""

    options: Fit
    model: Model
    params: FitParams
    boxes: Callable[[ImageFile], Any]
    table: FaceTable
    in_space: ImageTables | None
    action_units: ActionUnits | None
    without_face: list[Path] = dataclasses.field(default_factory=list)
    """The images that were seen, and no face in them."""

    def place(self, out: Path, ending: str) -> Path:
        """Where a result is written: beside its place as long as the table is."""
        path = out.with_name(f"{out.name}{ending}")
        return part_of(path) if self.table.beside else path

    def say(self, text: str) -> None:
        if not self.options.quiet:
            print(printable(text), flush=True)

    def do(self, image: Path, out: Path) -> bool:
        """Fit the faces of an image, whose other results' names begin with `out`; whether all of it
        could be done."""
        overlay, openface = (self.place(out, ending) for ending in (_OVERLAY, _TABLE))
        try:
            with silent_stderr():
                file = read_image_file(image)
        except JclnfError as e:
            complain(str(e))  # which names the file
            return False
        try:
            boxes = self.boxes(file)
        except JclnfError as e:
            complain(f"{image}: {e}")
            if isinstance(e, _NoFaceError):
                self.without_face.append(image)
            if self.options.empty_rows:
                self.table.write_without_face(str(image))
            return False
        done, drawn, measured = True, [], []
        for face, box in enumerate(boxes):
            try:
                result = self.fit(file.grey, box)
            except JclnfError as e:
                complain(f"{image}: face {face}: {e}")
                done = False
                continue
            units = self.units(file.colour, result)
            self.table.write(str(image), face, box, result, units)
            done = done and bool(result.success)
            drawn.append((face, box, result))
            head = None
            if self.in_space is not None:
                numbers = self.in_space.measure(result, file.grey)
                measured.append((face, result, numbers, units))
                head = measured[-1][2].head
            self.say(f"{image}: face {face}: {describe(result, head)}")
        if self.options.openface_csv and (tables := self.in_space):
            done = _written(lambda: tables.write(openface, measured)) and done
        if drawn and self.options.overlay:
            canvas = file.colour
            for face, box, result in drawn:
                label = str(face) if len(drawn) > 1 else None
                canvas = draw.landmarks(
                    canvas, result.landmarks, box=box, visible=result.visible, label=label
                )
            if _written(lambda: write_png(overlay, canvas)):
                self.say(f"{image}: drawn in {out}{_OVERLAY}")
            else:
                done = False
        return done

    def fit(self, grey: np.ndarray, box: Any) -> Any:
        """The fit of one face."""
        try:
            # JAX runs behind: its errors come when the result is asked for.
            return on_host(jclnf.fit(self.model, grey, box, self.params))
        except ParamsError as e:  # of all faces the same
            raise CommandError(str(e)) from e
        except jax.errors.JaxRuntimeError as e:  # too little memory, mostly
            raise JclnfError(f"JAX could not run the fit: {str(e).splitlines()[0]}") from e

    def units(self, image: np.ndarray, result: Any) -> np.ndarray | None:
        """The action units of a face, if they can be told."""
        if (model := self.action_units) is None:
            return None
        try:
            described = describe_openface(model, image, result.landmarks)
        except ImageError:  # the fit failed badly
            return None
        return np.asarray(model.shown(model.predict(described.descriptor)))


def describe(result: Any, head: Any = None) -> str:
    """Return a fit in a line: what there is to be done about it, if anything; the angles, of the
    head in the camera's frame if its `HeadPose` is given, else weak-perspective ones; the rest."""
    pose = result.pose if head is None else head
    pitch, yaw, roll = np.rad2deg(np.asarray(pose.rotation, float))
    whose, where = "weak-perspective", ""
    if head is not None:
        whose = "head in the camera's frame:"
        where = "at ({:.0f}, {:.0f}, {:.0f}) mm, ".format(*head.translation)
    line = (
        f"{whose} pitch {pitch:.1f}, yaw {yaw:.1f}, roll {roll:.1f} degrees, {where}"
        f"scale {float(result.pose.scale):.3f} px/mm, likelihood {float(result.likelihood):.3f}"
    )
    if result.confidence is not None:
        line += f", confidence {float(result.confidence):.3f}"
    return line if result.success else f"{result.message} {line}"


def _written(write: Callable[[], None]) -> bool:
    """Write a file; whether that worked."""
    try:
        write()
    except OutputError as e:
        complain(str(e))
        return False
    return True
