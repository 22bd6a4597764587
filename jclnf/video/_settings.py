"""Settings of a run over a video, and what tells one run from another."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from jclnf.errors import ParamsError

CHUNK = 32
"""Frames between which rows reach the file; a run goes on from the beginning of a chunk."""


ModelOption = Annotated[
    str | None,
    "a name that `jclnf models list` shows, a .safetensors file, or OpenFace's main file or model "
    "folder (default: the model that comes with jclnf)",
    {"metavar": "MODEL"},
]
DetectorOption = Annotated[
    str | None,
    "what finds faces: jclnf (its own network); haar (OpenCV's cascades); mtcnn (OpenFace's "
    "networks, where its models are installed) or mtcnn:PATH (its model folder); yunet:FILE.onnx "
    "(OpenCV's network); module:function (your own); default: jclnf, or mtcnn if that is there and "
    "the model is OpenFace's or the table is to be",
    {"metavar": "NAME"},
]
MinFaceOption = Annotated[
    float | None,
    "side in pixels of the smallest face looked for: the larger, the faster (default: a 36th of "
    "the image's longer side, with mtcnn at least 60)",
    {"metavar": "PX"},
]
FocalOption = Annotated[
    tuple[float, float] | None,
    "focal length in pixels, or those along x and y (default: OpenFace's guess)",
    {"metavar": "F[,F]", "least": 1},
]
CentreOption = Annotated[
    tuple[float, float] | None, "of the image, in pixels (default: its middle)", {"metavar": "X,Y"}
]
PrecisionOption = Annotated[bool, "all digits instead of OpenFace's decimals"]
SpacesOption = Annotated[
    bool,
    "a space after each comma of a table with OpenFace's columns, so that all their names but the "
    "first begin with one, as OpenFace 2.2.0 for Windows writes them",
]
ArithmeticOption = Annotated[
    Literal["exact", "openface"] | None,
    "openface follows OpenFace's numerical short cuts (default: as the model has it, which is "
    "exact unless it says otherwise)",
]
UnitsOption = Annotated[
    bool,
    "action units by OpenFace's predictors, for OpenFace's landmark detectors (--model): "
    "intensities AU01_r ... from 0 to 5, presences AU01_c ... 0 or 1",
]
UnitModelsOption = Annotated[
    str | None,
    "OpenFace's folder AU_predictors (default: looked for beside --model, then where OpenFace's "
    "models are installed)",
    {"metavar": "DIR"},
]
IterationsOption = Annotated[int | None, "of each pass at each scale"]

_FACES = {"group": "which faces (default: all that are found)"}
_WHICH, _FOUND = _FACES | {"exclusive": "which"}, _FACES | {"exclusive": "found"}
_TIME = {"group": "time and camera"}
_RESULTS = {"group": "results"}
_UNITS = {"group": "action units"}
_FIT = {"group": "the fit (default: as the model was trained)"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; plain values only, as they go to other processes and into files.

    The options of `jclnf video` are made of these fields: each has its help beside its type.

    Raises:
        ParamsError: settings that cannot be, or contradict each other.
    """

    model: ModelOption = None
    parts: Annotated[bool, "OpenFace's models of the eyes and the inner face"] = True
    validator: Annotated[bool, "OpenFace's validator"] = True
    arithmetic: Annotated[ArithmeticOption, _FIT] = None
    iterations: Annotated[IterationsOption, _FIT] = None
    detector: Annotated[DetectorOption, _FOUND] = None
    boxes: Annotated[
        str | None,
        "where faces begin, in place of a detector: the columns frame, x, y, w, h and, for several "
        "videos, video",
        _FOUND | {"metavar": "CSV"},
    ] = None
    min_face: Annotated[MinFaceOption, _FACES] = None
    one: Annotated[bool, "one, as OpenFace's FeatureExtraction", _WHICH] = False
    faces: Annotated[int | None, "at most N at a time", _WHICH] = None
    independent: Annotated[
        bool,
        "detect and fit in each frame by itself: slower and less steady, but no error goes from "
        "one frame to the next",
        _FACES,
    ] = False
    begin: Annotated[
        float,
        "seconds left out at the beginning",
        _TIME | {"name": "from", "metavar": "S"},
    ] = 0.0
    end: Annotated[
        float | None, "seconds after which nothing is used", _TIME | {"name": "to", "metavar": "S"}
    ] = None
    segment: Annotated[
        float | None,
        "cut longer videos into segments of about so many seconds, each of which begins with a "
        "detection and has faces of its own; with --ray they are done at the same time",
        _TIME | {"metavar": "S"},
    ] = None
    every: Annotated[int, "use every N-th frame only", _TIME] = 1
    rate: Annotated[
        float | None, "frames per second of a folder of images (default: 30)", _TIME
    ] = None
    focal: Annotated[FocalOption, _TIME] = None
    centre: Annotated[CentreOption, _TIME] = None
    aus: Annotated[UnitsOption, _UNITS] = False
    au_static: Annotated[
        bool,
        "the predictors for photographs, which know nothing of a person's other frames",
        _UNITS,
    ] = False
    au_models: Annotated[UnitModelsOption, _UNITS] = None
    hog: Annotated[
        bool,
        "what they are told by, a descriptor for each row, as OpenFace's file NAME.hog",
        _UNITS,
    ] = False
    masked: Annotated[
        bool, "NAME_masked, OpenFace's files of the aligned faces that they are told by", _UNITS
    ] = False
    empty_rows: Annotated[bool, "rows for frames in which there is no face", _RESULTS] = True
    openface_csv: Annotated[
        bool,
        "the table as OpenFace fills it: a face that is lost has the numbers of its failed fit, "
        "and a frame without a face zeros (with --one) or no row; an OpenFace model is fitted in "
        "OpenFace's arithmetic (unless --arithmetic says otherwise)",
        _RESULTS,
    ] = False
    csv_spaces: Annotated[SpacesOption, _RESULTS] = False
    full_precision: Annotated[PrecisionOption, _RESULTS] = False
    pts: Annotated[bool, "a .pts file for each face and frame", _RESULTS] = False
    aligned: Annotated[
        int,
        "an image of each face and frame, turned and sized alike (default side: 112)",
        _RESULTS | {"metavar": "SIDE", "nargs": "?", "const": 112},
    ] = 0
    overlay: Annotated[bool, "the video with the faces drawn in", _RESULTS] = False
    parquet: Annotated[bool, "the table as Parquet as well", _RESULTS] = False
    smooth: Annotated[
        str | None,
        "a second table, smoothed by the One-Euro filter; the first one keeps the raw values. "
        "Not for tremor",
        _RESULTS | {"metavar": "one-euro[:MINCUTOFF,BETA]"},
    ] = None
    plot: Annotated[bool, "NAME.png", _RESULTS] = True

    def __post_init__(self) -> None:
        if self.independent and self.boxes is not None:
            raise ParamsError("independent fits need the boxes of every frame: use a detector")
        if self.every < 1:
            raise ParamsError(f"every: at least 1, not {self.every}")
        if self.min_face is not None:
            from jclnf.detect import check_min_face

            check_min_face(self.min_face)
            if self.boxes is not None:
                raise ParamsError("min_face: with boxes, no faces are looked for")
        if self.faces is not None and self.faces < 1:
            raise ParamsError(f"faces: at least 1, not {self.faces}")
        if self.aligned and not 8 <= self.aligned <= 4096:
            raise ParamsError(f"aligned: a side of 8 to 4096 pixels, not {self.aligned}")
        for name in ("au_static", "au_models", "hog", "masked"):
            if getattr(self, name) and not self.aus:
                raise ParamsError(f"{name}: there are no action units without aus")
        if self.segment is not None:
            if self.segment < 1:
                raise ParamsError(f"segment: at least a second, not {self.segment:g}")
            if self.boxes is not None:
                raise ParamsError("segment: each begins with a detection, and not with boxes")
            if self.aus:
                raise ParamsError("segment: action units are judged by the whole video")
        if self.end is not None and self.end < self.begin:
            raise ParamsError(f"from {self.begin:g} to {self.end:g} seconds there is no frame")
        if self.smooth is not None:
            from jclnf.video._derived import one_euro

            one_euro(self.smooth)
        if self.focal is not None or self.centre is not None:
            from jclnf.space import Camera

            Camera.assumed(640, 480, self.focal, self.centre)

    def depends(self) -> dict[str, Any]:
        """What a result depends on, by option; files that options name go by contents."""
        from jclnf.outputs import by_option

        return by_option(self, leave_out=("model", "boxes", "au_models"))


def source_digest(path: str | os.PathLike[str]) -> str:
    """Tell a file, or a folder of images, from another, without reading all of it."""
    path = Path(path)
    if path.is_dir():
        from jclnf.images import Folder

        images = [[file.name, file.stat().st_size] for file in Folder.of(path).images]
        return hashlib.sha256(json.dumps(images).encode()).hexdigest()[:16]
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(2**20))
    digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()[:16]


def model_digest(model: Any) -> str:
    """A number for everything that a model consists of."""
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(model)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
