"""`jclnf fit`: landmarks of every face in photographs."""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jclnf.cli._base import INCOMPLETE, OK, CommandError, complain, printable
from jclnf.cli._camera import add_camera, camera_numbers
from jclnf.cli._files import find_images, openface_paths, overlay_paths
from jclnf.cli._settings import add_settings, fit_params
from jclnf.errors import BoxError, JclnfError, ModelFileError, ParamsError
from jclnf.images import Photo, read_photo
from jclnf.outputs import write_png

Boxes = Callable[[Photo], Any]
"""Returns the face boxes of a photograph, `(k, 4)`."""

_EPILOG = """\
output:
  DIR/landmarks.csv        one row a face, written as soon as it is fitted: image, face (0 is the
                           largest), status, likelihood, start box, pose (scale in pixels per
                           millimetre; rx, ry, rz: pitch, yaw, roll in radians; tx, ty), landmarks
                           x_0... y_0..., shape parameters p_0...
  DIR/<name>_overlay.png   the picture with the faces drawn in; points that the head's turn hides
                           are hollow
  DIR/<name>.csv           with --openface-csv: the image's faces as a table like those of
                           OpenFace's FaceLandmarkImg: gaze (with --parts), head pose and landmarks
                           in space in millimetres, no action units
Pixels are those of the picture turned upright as its EXIF orientation says, (0, 0) the centre of
the first one.

exit code:
  0  every face of every image was fitted
  1  something was not: an image could not be read or has no face, or a fit failed (its row
     says how: by its status or its confidence); all others were done
  2  nothing could be done: wrong usage, no model, no place to write
  130  interrupted; the rows written so far are complete

examples:
  jclnf fit photo.jpg --model OpenFace/model/main_clnf_general.txt
  jclnf fit holiday/ portraits/*.jpg --out results --one
  jclnf fit patient.png --box 310 122 240 251
  jclnf fit crowd.jpg --detector mtcnn:OpenFace/model
  jclnf fit frames/ --boxes boxes.csv --starts 1 --no-overlay --quiet
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command to argparse."""
    p = subparsers.add_parser(
        "fit",
        help="find and fit the faces in photographs",
        description="Find the faces in photographs and fit landmarks, head pose and shape to each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(run=run)
    p.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder of images")
    p.add_argument(
        "--model",
        metavar="PATH",
        help="a jclnf model (.safetensors), OpenFace's main file or model folder, or the name of "
        "an installed model, see `jclnf models list` "
        "(default: the model that comes with jclnf)",
    )
    p.add_argument("--out", metavar="DIR", default="fits", help="where to write (default: fits)")
    p.add_argument("--no-overlay", action="store_true", help="write no pictures")
    p.add_argument("--quiet", action="store_true", help="print errors only")

    space = p.add_argument_group("in space, in millimetres; distances follow the focal length")
    space.add_argument(
        "--openface-csv", action="store_true", help="write OpenFace's table of each image as well"
    )
    space.add_argument(
        "--full-precision", action="store_true", help="all digits instead of OpenFace's decimals"
    )
    add_camera(space)

    faces = p.add_argument_group("which faces (default: all that are found)")
    which = faces.add_mutually_exclusive_group()
    which.add_argument("--one", action="store_true", help="only the largest of each image")
    which.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X", "Y", "W", "H"),
        help="the face's box in pixels, tight from the eyebrows to the chin and from jaw to jaw; "
        "for a single image",
    )
    which.add_argument(
        "--boxes",
        metavar="CSV",
        help="a file with the columns image, x, y, w, h and one row a face",
    )
    faces.add_argument(
        "--detector",
        metavar="NAME",
        default="haar",
        help="what finds them: haar (OpenCV's cascades, the default); mtcnn (OpenFace's networks, "
        "where its models are installed) or mtcnn:PATH (its model folder); yunet:FILE.onnx "
        "(OpenCV's network); module:function (your own)",
    )

    openface = p.add_argument_group("OpenFace's models only")
    openface.add_argument(
        "--parts", action="store_true", help="refine the fit with models of the inner face and eyes"
    )
    openface.add_argument(
        "--validator",
        action="store_true",
        help="say how far each fit is to be trusted (confidence)",
    )

    add_settings(p)


def run(args: argparse.Namespace) -> int:
    """Fit all faces of all images; return the exit code that the help describes."""
    out = Path(args.out)
    images, problems = find_images(args.paths, out)
    for problem in problems:
        complain(problem)
    if args.box is not None and len(images) != 1:
        raise CommandError(
            f"--box is for one image, here are {len(images)}: give the boxes of several as --boxes"
        )
    if not images:
        return INCOMPLETE
    if args.full_precision and not args.openface_csv:
        raise CommandError("--full-precision is of the tables that --openface-csv writes")
    focal, centre = camera_numbers(args)
    boxes = _box_source(args)
    fit_face, model = _fitter(args)

    from jclnf.cli._face_table import FaceTable
    from jclnf.cli._openface import PictureTables

    try:
        out.mkdir(parents=True, exist_ok=True)
        table = FaceTable(out / "landmarks.csv", model.pdm.n_landmarks, model.pdm.n_modes)
    except OSError as e:
        raise CommandError(f"{out}: cannot be written: {e.strerror or e}") from e
    kept = [table.path, *([] if args.boxes is None else [Path(args.boxes)])]
    outputs = zip(overlay_paths(images, out), openface_paths(images, out, kept), strict=True)
    in_space = None
    if args.openface_csv or focal is not None or centre is not None:
        in_space = PictureTables(model, focal, centre, full_precision=args.full_precision)
    failed = len(problems)
    with table:
        try:
            for image, paths in zip(images, outputs, strict=True):
                failed += not _fit_image(args, image, paths, boxes, fit_face, table, in_space)
        finally:
            with contextlib.suppress(BrokenPipeError):
                faces = "1 face" if table.rows == 1 else f"{table.rows} faces"
                _say(args, f"{faces} in {table.path}")
    return INCOMPLETE if failed else OK


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(printable(text), flush=True)


def _box_source(args: argparse.Namespace) -> Boxes:
    """Return what gives the boxes of a photograph: the options, or the detector."""
    if args.box is not None:
        return lambda _: [args.box]
    if args.boxes is not None:
        from jclnf.annotations import BoxTable

        try:
            table = BoxTable(args.boxes)
        except BoxError as e:
            raise CommandError(str(e)) from e

        def listed(photo: Photo) -> Any:
            found = table.boxes(photo.path)
            if not found:
                raise BoxError(f"no box for it in {args.boxes}")
            return found

        return listed

    from jclnf.detect import find_faces, make_detector

    try:
        detector = make_detector(args.detector)
    except JclnfError as e:
        raise CommandError(str(e)) from e

    def detected(photo: Photo) -> Any:
        found = find_faces(detector, photo)
        if len(found) == 0:
            raise BoxError(
                "no face found; if there is one, give its box as --box X Y W H, or try another "
                "--detector"
            )
        return found[:1] if args.one else found

    return detected


def _fitter(args: argparse.Namespace) -> tuple[Callable[[np.ndarray, Any], Any], Any]:
    """Return the fit of one face, from the picture and a box to a result, and the model."""
    import jax

    import jclnf

    jclnf.enable_compilation_cache()
    try:
        model = _load(args)
        params = fit_params(args, model)
    except (ModelFileError, ParamsError) as e:
        raise CommandError(str(e)) from e

    def fit_face(grey: np.ndarray, box: Any) -> Any:
        try:
            # JAX runs behind: its errors come when the result is asked for.
            return jax.device_get(jclnf.fit(model, grey, box, params))
        except ParamsError as e:  # of all faces the same
            raise CommandError(str(e)) from e
        except jax.errors.JaxRuntimeError as e:  # too little memory, mostly
            raise JclnfError(f"JAX could not run the fit: {str(e).splitlines()[0]}") from e

    return fit_face, model


def _load(args: argparse.Namespace) -> Any:
    """Return the model that the options ask for."""
    import jclnf
    from jclnf.files import find_model

    if not (args.parts or args.validator):
        return jclnf.load_model(args.model)
    if args.model is None or args.model.endswith(".safetensors"):
        raise CommandError(
            "--parts and --validator are for OpenFace's models (a .safetensors model has them if "
            "it was saved with them): give its main file or folder as --model"
        )
    return jclnf.load_openface(find_model(args.model), parts=args.parts, validator=args.validator)


def _fit_image(
    args: argparse.Namespace,
    image: Path,
    paths: tuple[Path, Path],
    boxes: Boxes,
    fit_face: Callable[[np.ndarray, Any], Any],
    table: Any,
    in_space: Any,
) -> bool:
    """Fit the faces of one image, whose overlay and OpenFace's table go to `paths`; return whether
    all of it could be done."""
    from jclnf.runtime import silent_stderr

    try:
        with silent_stderr():
            photo = read_photo(image)
    except JclnfError as e:
        complain(str(e))  # which names the file
        return False
    try:
        found = boxes(photo)
    except JclnfError as e:
        complain(f"{image}: {e}")
        return False
    overlay, openface = paths
    done, drawn, measured = True, [], []
    for face, box in enumerate(found):
        try:
            result = fit_face(photo.grey, box)
        except JclnfError as e:
            complain(f"{image}: face {face}: {e}")
            done = False
            continue
        try:
            table.write(str(image), face, box, result)
        except OSError as e:
            raise CommandError(f"{table.path}: cannot be written: {e.strerror or e}") from e
        done = done and bool(result.success)
        drawn.append((face, box, result))
        head = None
        if in_space is not None:
            measured.append((face, result, in_space.measure(result, photo.grey)))
            head = measured[-1][2].head
        _say(args, f"{image}: face {face}: {describe(result, head)}")
    if args.openface_csv:
        try:
            in_space.write(openface, measured)
        except OSError as e:
            complain(f"{openface}: cannot be written: {e.strerror or e}")
            done = False
    if drawn and not args.no_overlay:
        done = _draw(args, photo, overlay, drawn) and done
    return done


def describe(result: Any, head: Any = None) -> str:
    """Return a fit in a line: how it ended, pose in degrees (in the camera's frame, with the place
    in millimetres, if the `HeadPose` is given), scale, likelihood and confidence."""
    pose = result.pose if head is None else head
    pitch, yaw, roll = np.rad2deg(np.asarray(pose.rotation, float))
    at = "" if head is None else "at ({:.0f}, {:.0f}, {:.0f}) mm, ".format(*head.translation)
    line = (
        f"{result.message} Pitch {pitch:.1f}, yaw {yaw:.1f}, roll {roll:.1f} degrees, {at}"
        f"scale {float(result.pose.scale):.3f} px/mm, likelihood {float(result.likelihood):.3f}"
    )
    if result.confidence is not None:
        line += f", confidence {float(result.confidence):.3f}"
    return line


def _draw(args: argparse.Namespace, photo: Photo, path: Path, drawn: list[Any]) -> bool:
    """Write the picture with its faces; return whether that worked."""
    from jclnf.draw import draw_overlay

    canvas = photo.colour
    for face, box, result in drawn:
        label = str(face) if len(drawn) > 1 else None
        canvas = draw_overlay(
            canvas, result.landmarks, box=box, visible=result.visible, label=label
        )
    try:
        write_png(path, canvas)
    except OSError as e:
        complain(f"{path}: cannot be written: {e.strerror or e}")
        return False
    _say(args, f"{photo.path}: drawn in {path}")
    return True
