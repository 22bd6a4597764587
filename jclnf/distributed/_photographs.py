"""Photographs on a Ray cluster: a stretch of them is a piece of work, and becomes a file."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jclnf
from jclnf.annotations import NO_FACE, face_columns, face_values
from jclnf.detect import check_min_face, default_name, find_faces, make_detector
from jclnf.distributed._cluster import TRIES, cluster, each
from jclnf.distributed._sources import Photographs, find_photographs
from jclnf.errors import JclnfError, OutputError
from jclnf.files import load_model
from jclnf.fitting import Model, fit_images
from jclnf.images import ImageFile, crop, decode_image_file
from jclnf.outputs import (
    check_same,
    claim,
    growing,
    locked,
    make_folder,
    replacing,
    settle,
    write_bytes,
)
from jclnf.params import FitParams
from jclnf.video import model_digest

FACES = "faces.parquet"
_ABOUT = "_about.json"
"""Files whose names begin so are no part of a Parquet data set."""
_WAIT = 60.0
"""Seconds that the processes of a run that was just killed have to end."""
_KEY = b"jclnf"


@dataclass(frozen=True)
class PhotographSettings:
    """How faces in photographs are found and fitted; as the options of `jclnf fit`.

    Attributes:
        model: a name or a path, see `jclnf.load_model`, as are `parts` and `validator`.
        params: settings of the fit; the model's if not given.
        detector: what finds faces, see `jclnf fit --help`.
        min_face: side in pixels of the smallest face looked for.
        one: only the largest face of each photograph.
        shard: photographs in one file of the results.
    """

    model: str | None = None
    parts: bool = False
    validator: bool = False
    params: FitParams | None = None
    detector: str | None = None
    min_face: float | None = None
    one: bool = False
    shard: int = 256


@dataclass
class Shard:
    """How a stretch of photographs went.

    Attributes:
        path: the file of its faces.
        photographs: how many there are.
        faces: rows of faces.
        failed: rows that are no success: fits, photographs without a face or that cannot be read.
        problems: a line for each photograph that cannot be read.
    """

    path: str
    photographs: int = 0
    faces: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)


def fit_photographs(
    sources: Sequence[str],
    out: Path,
    settings: PhotographSettings = PhotographSettings(),
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    resume: bool = False,
    filesystem: Any = None,
) -> Iterator[Shard]:
    """Fit all faces of many photographs on a Ray cluster, and tell how each stretch of them went.

    `out/faces.parquet` is a Parquet data set, a file for each stretch, with the columns of `jclnf
    fit` and `message`: a row for each face, and one for each photograph without a face (`status`
    is `no_face`) or that cannot be read (`unreadable`, and `message` says why). Nothing depends on
    the number of workers, nor on processes that were killed.

    Args:
        sources: images, Parquet files with a column of images' bytes, or folders of either; paths,
            or URIs of file systems that pyarrow knows (`s3://bucket/folder`). All machines must
            reach them under the same names.
        out: folder of the results, which all machines see.
        settings: see `PhotographSettings`.
        address: of the cluster, as for `process_videos`.
        workers: processes; as many as the cluster has devices if not given.
        device: `cpu`, `gpu`, or a GPU if the cluster has one.
        resume: do only what an earlier run with the same settings and photographs has not done.
        filesystem: of pyarrow, that the sources are paths of.

    Yields:
        Each stretch when it is done.

    Raises:
        ModelFileError, ParamsError, DetectorError, OutputError: nothing can be done.
        ImageError: a source holds no photographs.
        ClusterError: Ray is not installed, no cluster answers, or it failed.
    """
    check_min_face(settings.min_face)
    photographs = find_photographs(sources, settings.shard, filesystem)
    model = load_model(settings.model, parts=settings.parts, validator=settings.validator)
    detector = settings.detector or default_name(settings.model)
    params = settings.params or model.defaults
    depends = vars(settings) | {
        "model": model_digest(model),
        "params": model_digest(params),
        "detector": detector,
        "the photographs": hashlib.sha256(repr(photographs).encode()).hexdigest()[:16],
        "the version of jclnf": jclnf.__version__,
    }
    with cluster(address):
        make_folder(out)
        folder = out / FACES
        with locked(folder):
            claim(out, "fit", fixed=(FACES,))
            place = growing(folder, resume=resume)
            _check(place / _ABOUT, depends)
            make_folder(place)
            about: dict[str, Any] = {"depends": depends, "model": model.name, "finished": False}
            _write_about(place, about)
            jobs = [(place / f"part-{n:06}.parquet", one) for n, one in enumerate(photographs)]
            done = [_known(path) for path, _ in jobs if path.exists()]
            yield from done
            left = [(str(path), one) for path, one in jobs if not path.exists()]
            arguments = settings, params, detector
            for at, result in each(_Worker, arguments, left, workers=workers, device=device):
                shard = _result(left[at], result)
                done.append(shard)
                yield shard
            if all(path.exists() for path, _ in jobs):
                counts = ("photographs", "faces", "failed")
                sums = {name: sum(getattr(one, name) for one in done) for name in counts}
                _write_about(place, about | sums | {"finished": True})
                settle(folder)


def _check(path: Path, depends: dict[str, Any]) -> None:
    """Raise OutputError if a run with other settings has left this."""
    if path.exists():
        try:
            before = json.loads(path.read_bytes())["depends"]
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputError(f"{path}: is damaged: run without --resume") from None
        check_same(path, before, depends)


def _write_about(place: Path, about: dict[str, Any]) -> None:
    write_bytes(place / _ABOUT, (json.dumps(about, indent=1, default=str) + "\n").encode())


def _result(job: tuple[str, Photographs], result: Shard | JclnfError | None) -> Shard:
    if isinstance(result, Shard):
        return result
    path, photographs = job
    why = f"its process was ended {TRIES} times, for want of memory perhaps"
    problem = f"{photographs}: {why if result is None else result}"
    return Shard(path, problems=[problem])


def _known(path: Path) -> Shard:
    """What the file of a stretch says of itself. Raises OutputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = json.loads(pq.read_schema(path).metadata[_KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        raise OutputError(f"{path}: is damaged: remove it, and go on with --resume") from None
    return Shard(str(path), **found)


class _Worker:
    """Fits the faces of photographs, with the model loaded once."""

    def __init__(self, settings: PhotographSettings, params: FitParams, detector: str) -> None:
        import jax

        self._settings, self._params = settings, params
        self._model: Model = load_model(
            settings.model, parts=settings.parts, validator=settings.validator
        )
        self._detector = make_detector(detector)
        # On one core a batch takes as long as its faces one by one, and more memory.
        self._together = 1 if jax.default_backend() == "cpu" else 64
        sizes = self._model.pdm.n_landmarks, self._model.pdm.n_modes
        self._columns = [*face_columns(*sizes), "message"]

    def __call__(self, job: tuple[str, Photographs]) -> Shard:
        path, photographs = Path(job[0]), job[1]
        # The process of a run that was killed may still be at it.
        with locked(path, wait=_WAIT):
            if not path.exists():
                self._write(path, photographs)
        return _known(path)

    def _write(self, path: Path, photographs: Photographs) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, problems, count = [], [], 0
        waiting: list[tuple[int, str, int, Any, ImageFile]] = []
        for name, data in photographs.read():
            count += 1
            try:
                if isinstance(data, JclnfError):
                    raise data
                image = decode_image_file(name, data)
            except JclnfError as error:
                problems.append(str(error))
                rows.append(self._row(name, "unreadable", str(error)))
                continue
            try:
                boxes = find_faces(self._detector, image, min_face=self._settings.min_face)
            except JclnfError as error:
                rows.append(self._row(name, "unreadable", str(error)))
                continue
            if len(boxes) == 0:
                rows.append(self._row(name, NO_FACE, None))
            for face, box in enumerate(boxes[:1] if self._settings.one else boxes):
                try:
                    crop(image.grey, box)
                except JclnfError as error:
                    rows.append(self._row(name, "unreadable", str(error)))
                    continue
                waiting.append((len(rows), name, face, box, image))
                rows.append([])
                if len(waiting) == self._together:
                    self._fit(waiting, rows)
        self._fit(waiting, rows)
        at = self._columns.index("success")
        about = {
            "photographs": count,
            "faces": sum(row[1] is not None for row in rows),
            "failed": sum(row[at] != 1 for row in rows),
            "problems": problems,
        }
        schema = pa.schema([(name, _kind(name, pa)) for name in self._columns])
        schema = schema.with_metadata({_KEY: json.dumps(about)})
        table = pa.Table.from_pylist(
            [dict(zip(self._columns, row, strict=True)) for row in rows], schema
        )
        with replacing(path, lock=False) as part:
            pq.write_table(table, part)

    def _row(self, name: str, status: str, message: str | None) -> list[Any]:
        known = {"image": name, "status": status, "success": 0, "message": message}
        return [known.get(column) for column in self._columns]

    def _fit(
        self, waiting: list[tuple[int, str, int, Any, ImageFile]], rows: list[list[Any]]
    ) -> None:
        """Fit the faces that wait, and put their rows where they belong."""
        import jax

        if not waiting:
            return
        results = fit_images(
            self._model,
            [image.grey for *_, image in waiting],
            [box for *_, box, _ in waiting],
            self._params,
        )
        for at, (row, name, face, box, _) in enumerate(waiting):
            result = jax.tree.map(lambda array, n=at: array[n], results)
            values = face_values(name, face, box, result)
            known = [
                None if isinstance(value, float) and math.isnan(value) else value
                for value in values
            ]
            rows[row] = [*known, None]
        waiting.clear()


def _kind(column: str, pa: Any) -> Any:
    kinds = {"image": pa.string(), "status": pa.string(), "message": pa.string()}
    return (kinds | {"face": pa.int32(), "success": pa.int8()}).get(column, pa.float32())
