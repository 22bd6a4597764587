"""The options of each command, and its help: what is read here needs neither JAX nor OpenCV."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from jclnf.video import (
    ArithmeticOption,
    CentreOption,
    DetectorOption,
    FocalOption,
    IterationsOption,
    MinFaceOption,
    ModelOption,
    PrecisionOption,
    Settings,
    SpacesOption,
    UnitModelsOption,
    UnitsOption,
)

_SPACE = {"group": "in space, in millimetres; distances follow the focal length"}
_FACES = {"group": "which faces (default: all that are found)"}
_WHICH = _FACES | {"exclusive": "which"}
_CLUSTER = {"group": "many photographs"}
_OPENFACE = {"group": "OpenFace's models only"}
_FIT = {"group": "the fit (default: as the model was trained)"}
_UNITS = {"group": "action units"}

QuietOption = Annotated[bool, "print errors only"]
DeviceOption = Annotated[
    str | None,
    "what computes: cpu, gpu, or the number of a GPU (default: a GPU if JAX finds one)",
    {"metavar": "cpu|gpu|N"},
]
OutOption = Annotated[Path, "where to write", {"metavar": "DIR"}]
WindowsOption = Annotated[
    tuple[int, ...] | None,
    "search window in pixels at each scale, coarse to fine; 0 leaves a scale out",
    {"metavar": "A,B,..."},
]
StartsOption = Annotated[
    Literal[1, 11] | None,
    "head rotations to start from, of which the likeliest fit is kept (default: as the model has "
    "it: the one that comes with jclnf has a learned start, OpenFace's have 11; without a learned "
    "start, 1 is faster and enough for faces towards the camera)",
]
NamedModel = Annotated[
    str,
    "`default` (comes with jclnf) or another name that `jclnf models list` shows, a .safetensors "
    "file, or OpenFace's main file or model folder",
    {"metavar": "MODEL"},
]
DataArgument = Annotated[
    str, "annotated images: a CSV or XML file, or a folder", {"metavar": "DATA"}
]
SplitOption = Annotated[str | None, "only faces of this split of the data", {"metavar": "NAME"}]


RayOption = Annotated[
    str | None,
    "on a Ray cluster, with a process for each of its devices; ADDRESS is HOST:PORT, or auto for "
    "the cluster that this machine is part of (default: the one that RAY_ADDRESS names, or else "
    "the cores of this machine). Needs `pip install 'jclnf[ray]'`",
    {"nargs": "?", "const": "", "metavar": "ADDRESS"},
]


COMPILING = "compiling for faces of this size, which takes up to a minute, once ..."


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Find the faces in images and fit landmarks, head pose and shape to each.

    output:
      DIR/landmarks.csv        one row a face, written as soon as it is fitted: image, face (0 is
                               the largest), status, likelihood, confidence, success, start box, the
                               weak-perspective pose (scale in pixels per millimetre; weak_pitch,
                               weak_yaw, weak_roll in radians; tx, ty), landmarks x_0... y_0...,
                               shape parameters p_0... Cells are empty where nothing was measured:
                               pose, landmarks and shape of a fit that failed (success 0), and all
                               but the first columns of an image without a face (status no_face)
      DIR/landmarks.json       settings, model, and whether the table is complete
      DIR/<name>_overlay.png   the image with the faces drawn in; points that the head's turn hides
                               are hollow
      DIR/<name>.csv           with --openface-csv: the image's faces as a table like those of
                               OpenFace's FaceLandmarkImg: gaze (with --parts), head pose and
                               landmarks in space in millimetres
    With --aus, both tables have columns of action units.
    With --ray, PATH may also be a Parquet file with a column of images' bytes, or a URI such as
    s3://bucket/folder, and the output is
      DIR/faces.parquet        a Parquet data set, a file for each 256 photographs: the columns of
                               landmarks.csv (nulls for empty cells), and message, which says of an
                               unreadable photograph (status unreadable) why. It does not depend on
                               the number of workers

    Of a folder, all images are taken, in folders within it too, and what is left out is named; what
    jclnf has written there is not. Results take the place of those of an earlier run when they are
    complete; until then they are beside them in hidden files, with which --resume goes on.
    Pixels are those of the image turned upright as its EXIF orientation says, (0, 0) the centre of
    the first one. Weak-perspective angles are those against the line of sight to the face; angles
    of the head in the camera's frame (shown with --openface-csv, --focal or --centre) differ from
    them by how far the face is from the middle of the image.

    exit code:
      0  every face of every image was fitted
      1  something was not: an image could not be read or has no face, or a fit failed (its row
         says how: by its status or its confidence); all others were done
      2  nothing could be done: wrong usage, no model, no place to write
      130  interrupted; go on with --resume

    examples:
      jclnf fit photo.jpg --model OpenFace/model/main_clnf_general.txt
      jclnf fit holiday/ portraits/*.jpg --out results --one
      jclnf fit patient.png --box 310,122,240,251
      jclnf fit crowd.jpg --detector mtcnn:OpenFace/model
      jclnf fit frames/ --boxes boxes.csv --starts 1 --no-overlay --quiet
      jclnf fit photo.jpg --model clnf_general --parts --aus --openface-csv
      jclnf fit photos/ more.parquet --resume --ray
    """

    paths: Annotated[tuple[str, ...], "an image, or a folder of images", {"metavar": "PATH"}]
    model: ModelOption = None
    out: OutOption = Path("fits")
    overlay: Annotated[bool, "images of the faces"] = True
    empty_rows: Annotated[bool, "rows for images in which there is no face"] = True
    device: DeviceOption = None
    quiet: QuietOption = False
    resume: Annotated[
        bool, "go on with a run that was ended, or do the images that have come since"
    ] = False
    compiling, interrupted = COMPILING, "go on with --resume"

    ray: Annotated[RayOption, _CLUSTER] = None
    workers: Annotated[int | None, "processes (default: one for each device)", _CLUSTER] = None

    openface_csv: Annotated[
        bool,
        "write OpenFace's table of each image as well, and fit an OpenFace model with OpenFace's "
        "settings: its arithmetic, and one frontal start (unless --arithmetic or --starts say "
        "otherwise), as FaceLandmarkImg",
        _SPACE,
    ] = False
    csv_spaces: Annotated[SpacesOption, _SPACE] = False
    full_precision: Annotated[PrecisionOption, _SPACE] = False
    focal: Annotated[FocalOption, _SPACE] = None
    centre: Annotated[CentreOption, _SPACE] = None

    aus: Annotated[UnitsOption, _UNITS] = False
    au_models: Annotated[UnitModelsOption, _UNITS] = None

    one: Annotated[bool, "only the largest of each image", _WHICH] = False
    box: Annotated[
        tuple[float, float, float, float] | None,
        "the face's box in pixels, tight from the eyebrows to the chin and from jaw to jaw; for a "
        "single image",
        _WHICH | {"metavar": "X,Y,W,H"},
    ] = None
    boxes: Annotated[
        str | None,
        "a file with the columns image, x, y, w, h and one row a face",
        _WHICH | {"metavar": "CSV"},
    ] = None
    detector: Annotated[DetectorOption, _FACES] = None
    min_face: Annotated[MinFaceOption, _FACES] = None

    parts: Annotated[bool, "refine the fit with models of the inner face and eyes", _OPENFACE] = (
        False
    )
    validator: Annotated[bool, "say how far each fit is to be trusted (confidence)", _OPENFACE] = (
        False
    )

    arithmetic: Annotated[ArithmeticOption, _FIT] = None
    iterations: Annotated[IterationsOption, _FIT] = None
    windows: Annotated[WindowsOption, _FIT] = None
    starts: Annotated[StartsOption, _FIT] = None


@dataclass(frozen=True, kw_only=True)
class Video:
    """Follow the faces of videos, and write landmarks, head pose and gaze as OpenFace's tables.

    output, for a video NAME:
      DIR/NAME.csv             the columns of OpenFace 2.2's FeatureExtraction, written as it goes:
                               a row for each face that is followed in each frame, and one for each
                               frame without a face. face_id stays with a face until a cut (with
                               --one it is always 0); success 0 means that the face was not seen
                               there. Cells are empty (in Parquet: null) where nothing was measured:
                               a lost face has its confidence alone, a frame without a face not even
                               a face_id. A column more, cut, is 1 in the first frame after a cut
                               and else 0 (empty with --every 4 and more, where no cuts are looked
                               for). --openface-csv fills the columns as OpenFace does, without cut.
                               Gaze needs OpenFace's eye models (--model), action units --aus:
                               columns of what is not there are left out. While a video is read,
                               action units are as far as they can be told so far; in the end, all
                               are judged by the whole video, shifted and smoothed, as OpenFace does
      DIR/NAME.png             confidence, pose and some landmarks over time
      DIR/NAME.json            settings, versions, model, camera, cuts, and what was wrong; written
                               last
      and on request NAME.parquet, NAME_smoothed.csv, NAME_overlay.mp4, NAME_pts/, NAME_aligned/
    Frames are counted from 1. Time is that of the file's own time stamps, from the first frame.

    With --ray, all machines need jclnf, and the videos and DIR under the same paths; results are
    those of --workers 2, byte for byte. DIR/report.csv has a row for each video then, and a video
    whose process is killed goes on in another.

    Of a folder, all videos are taken, in folders within it too; if there are none, the images of
    each of these folders as the frames of one. What is left out is named; what jclnf has written
    there is not. DIR/NAME_images.csv says which image is which frame: numbers that the images'
    names leave out are left out. Results take the place of those of an earlier run when they are
    complete, and of no other file: NAME gets a number then.

    A run that was ended (even by a power cut) goes on with --resume and the same options; its
    results are the same, byte for byte, as those of a run that was not.

    exit code:
      0  all videos were read to their end
      1  something could not be done, and a line says what; everything else was
      2  nothing could be done: wrong usage, no model, no place to write
      130  interrupted; go on with --resume

    examples:
      jclnf video interview.mp4 --out results
      jclnf video recordings/ --out results --one --workers 2 --resume
      jclnf video clip.avi --out results --model clnf_general --detector mtcnn --overlay
      jclnf video frames/ --out results --rate 25
      jclnf video recordings/ --out results --resume --ray   all cores
      jclnf video 0 --out results                            a camera
    """

    sources: Annotated[
        tuple[str, ...],
        "a video; a folder of videos, or of numbered images; or the number of a camera",
        {"metavar": "SOURCE"},
    ]
    settings: Settings
    out: OutOption = Path("videos")
    resume: Annotated[bool, "go on with a run that was ended"] = False
    workers: Annotated[
        int | None,
        "videos done at the same time; on one GPU they share its memory (default: 1; with --ray, "
        "one for each device)",
    ] = None
    ray: RayOption = None
    device: DeviceOption = None
    quiet: QuietOption = False
    compiling, interrupted = COMPILING, "the same command goes on from here with --resume"
    checkpoint_every: Annotated[float, argparse.SUPPRESS] = 5.0


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Fit a model to annotated faces and measure its errors.

    data:
      a CSV file          columns image, x_0, y_0, x_1, y_1, ... and, if there are any, identity,
                          split and the face's box x, y, w, h; pixels count from 0; images are
                          beside it, or in the folder images beside it
      a folder            with such a file called landmarks.csv, or with images and .pts files of
                          the same names (as 300-W; pixels count from 1), in folders within it too
      dlib's XML          images are named from the file's folder on

    output:
      DIR/errors.csv      one row a face: image, face (its number in the image), status, likelihood,
                          start box, weak_yaw_degrees, errors in % (columns nme_...)
      DIR/summary.json    all figures of the tables, and what was run
      DIR/curve.png       what part of the faces has at most which error (needs matplotlib)
    Errors are means over a face's landmarks in % of the distance of its outer eye corners, or of
    sqrt(width * height) of its landmarks' extent. "Offsets removed": without the median offset of
    each landmark, which tells scatter from another idea of where a point is. Yaw is the
    weak-perspective one of the model's shape fitted to the annotation. Faces that were not fitted
    count as over every limit, and as the worst in medians and percentiles, but cannot be part of a
    mean.

    exit code:
      0  every face was fitted, well or badly
      1  some faces were not, because an image could not be read or a box not be used
      2  nothing could be done: wrong usage, no model, no data, no place to write
      130  interrupted, nothing is written

    examples:
      jclnf eval default faces/ --split val --boxes faces/val_boxes.csv
      jclnf eval OpenFace/model/main_clnf_general.txt 300W/ --arithmetic openface --starts 1
    """

    model: NamedModel
    data: DataArgument
    split: SplitOption = None
    boxes: Annotated[
        str | None,
        "start boxes: a file with the columns image, x, y, w, h (default: the boxes in the data, "
        "and where there are none the extent of the true landmarks)",
        {"metavar": "CSV"},
    ] = None
    out: OutOption = Path("eval")
    device: DeviceOption = None
    quiet: QuietOption = False
    compiling, interrupted = COMPILING, "nothing was written"
    arithmetic: Annotated[ArithmeticOption, _FIT] = None
    iterations: Annotated[IterationsOption, _FIT] = None
    windows: Annotated[WindowsOption, _FIT] = None
    starts: Annotated[StartsOption, _FIT] = None


@dataclass(frozen=True, kw_only=True)
class _Learning:
    """Options of both `train` and `tune`."""

    data: DataArgument
    out: Annotated[Path, "file to write (.safetensors)", {"metavar": "MODEL", "required": True}]
    split: SplitOption = None
    identity: Annotated[
        str | None,
        "whose face it is: a regular expression for the image's path from DATA's folder on, "
        "without its ending, such as '(p\\d+)_'; '.*' if each image is of another person (default: "
        "the column identity; with .pts files, the folder within DATA)",
        {"metavar": "PATTERN"},
    ] = None
    held_out: Annotated[
        float,
        "part of the people to measure the progress on instead of learning from them",
        {"metavar": "PART"},
    ] = 0.1
    work: Annotated[
        Path | None,
        "where checkpoints and curves.csv are kept (default: MODEL.training or MODEL.tuning)",
        {"metavar": "DIR"},
    ] = None
    seed: Annotated[int, "of everything random"] = 0
    device: DeviceOption = None
    quiet: QuietOption = False
    compiling = "compiling a step of the training, which takes up to some minutes, once ..."
    interrupted = "the same command goes on from here"


@dataclass(frozen=True, kw_only=True)
class Train(_Learning):
    """Train a model on annotated images, or train an existing one further.

    data:
      a CSV file with the columns image, x_0, y_0 ... (0-based pixels) and, if there are, identity
      and split; a folder of images with .pts files beside them (as of 300-W); or dlib's XML.
      Landmarks are the 68 points of the iBUG scheme. Faces of one person are never in both parts
      of the data: whose they are is in the column identity, or, with .pts files, the name of the
      folder within DATA that they are in, or found by --identity.

    output:
      MODEL                    the trained model
      MODEL.training/          checkpoints; curves.csv with the loss on the faces learned from
                               and held out after each epoch; curves.png (with the extra "plots");
                               held_out.csv with the faces held out and whose they are. It may be
                               removed when the training is done
    A training that was interrupted goes on where it stood when the command is run again.

    examples:
      jclnf train faces/landmarks.csv --split train --out model.safetensors
      jclnf train patients/ --from default --out patients.safetensors
    """

    source: Annotated[
        str | None,
        "train this model further instead of one from nothing; `default` is the one that comes "
        "with jclnf. Fifty images will do",
        {"name": "from", "metavar": "MODEL"},
    ] = None
    effort: Annotated[
        float,
        "factor on the length of all stages (default: 1, which takes about an hour for 3,000 faces "
        "on two cores)",
        {"metavar": "FACTOR"},
    ] = 1.0
    shape_prior: Annotated[
        str | None,
        "3D faces that the shape model starts from: an array `examples` (e, 68, 3) in millimetres, "
        "x right, y down, z away from the viewer (default: drawn from the shape model that comes "
        "with jclnf)",
        {"metavar": "NPZ"},
    ] = None


@dataclass(frozen=True, kw_only=True)
class Tune(_Learning):
    """Tune a model's settings, experts or shape model by gradient descent through its fits.

    data:
      as for `jclnf train` and `jclnf eval`; landmarks as many as the model has

    output:
      MODEL                    the tuned model, with the tuned settings as its defaults
      MODEL.tuning/            checkpoint; curves.csv with the loss and the error on the faces held
                               out after each epoch (0 is before); held_out.csv with those faces;
                               offset.csv (with --offset). It may be removed when the tuning is done
    A tuning that was interrupted goes on where it stood when the command is run again.

    examples:
      jclnf tune faces/ --model clnf_general --what params --starts 11 --offset --out t.safetensors
      jclnf tune dark/ --model default --what experts --out dark.safetensors
    """

    model: NamedModel = "default"
    what: Annotated[
        Literal["params", "experts", "start", "pdm", "all"],
        "what is tuned: the settings of each scale and the weight of each landmark (default), the "
        "patch experts, the learned start, the shape model, or everything (but the start)",
    ] = "params"
    boxes: Annotated[str | None, "start boxes, as for `jclnf eval`", {"metavar": "CSV"}] = None
    starts: Annotated[
        Literal[1, 11], "start each face from the likeliest of so many head rotations"
    ] = 1
    offset: Annotated[
        bool, "the data mean something else by some landmarks: learn that as a constant offset"
    ] = False
    epochs: Annotated[int, "passes over the faces"] = 8
    patience: Annotated[int | None, "end after N epochs without progress"] = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure how fast jclnf is on this machine.

    Nothing else should run meanwhile. It takes one to two minutes, with --full some more. Fits
    are of one photograph of a face, with the model's own settings; a video's figure is that of
    following a face in frames that are in memory already.

    output:
      a table; with --out as JSON: format ("jclnf-bench/1"), machine (system, processor, cores,
      device, devices, python, jax, jclnf), model, and rows, each with what was measured, the number
      of faces done at once, the milliseconds a face (a frame) took, and how many a second that is

    examples:
      jclnf bench
      jclnf bench --model clnf_general --full --out bench.json
    """

    model: NamedModel = "default"
    image: Annotated[
        Path | None,
        "a photograph of a face (default: the one that matplotlib brings)",
        {"metavar": "FILE"},
    ] = None
    full: Annotated[bool, "batches of 1 to 1024, and a gradient"] = False
    out: Annotated[Path | None, "write the figures there as well", {"metavar": "JSON"}] = None
    device: DeviceOption = None
    quiet: QuietOption = False
    compiling, interrupted = COMPILING, "nothing was written"


@dataclass(frozen=True, kw_only=True)
class Install:
    """Install OpenFace's model files, from your own copy or from the network.

    OpenFace's files are installed below $OPENFACE_MODELS_DIR/2.2.0, or without that variable below
    OpenFaceModels/2.2.0 in your folder for application data, where other programs find them as
    well. An installation that was cut short goes on where it ended when the command is run again.

    exit code:
      0  every file that could be had is installed
      1  some files could not be installed, the others are
      2  nothing was installed: the licence was not accepted, no room, no network, no such copy

    examples:
      jclnf models install openface --from ~/OpenFace/build/bin/model
      jclnf models install openface --from OpenFace_2.2.0_win_x64.zip --accept-license
      jclnf fit photo.jpg --model clnf_general
    """

    interrupted = "the same command goes on from here"

    which: Annotated[str, "whose models", {"choices": ("openface",)}]
    source: Annotated[
        Path | None,
        "a folder, or a zip or tar archive, that has the files (default: download them)",
        {"name": "from", "metavar": "PATH"},
    ] = None
    accept_license: Annotated[bool, "say that you accept the licence, and be asked no question"] = (
        False
    )
    quiet: QuietOption = False


@dataclass(frozen=True)
class List:
    """List the installed models."""


@dataclass(frozen=True)
class Info:
    """Describe a model."""

    model: NamedModel


COMMANDS: dict[str, tuple[Any, str]] = {
    "fit": (Fit, "_fit.run"),
    "video": (Video, "_video.run"),
    "eval": (Eval, "_eval.run"),
    "train": (Train, "_train.run"),
    "tune": (Tune, "_tune.run"),
    "bench": (Bench, "_bench.run"),
    "models install": (Install, "_models.install"),
    "models list": (List, "_models.show_list"),
    "models info": (Info, "_models.info"),
}
"""The class of a command's options, and the function that performs it."""
