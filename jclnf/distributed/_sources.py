"""Photographs wherever pyarrow reads them: in files of their own, or in Parquet."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jclnf.errors import ClusterError, ImageError
from jclnf.images import IMAGE_SUFFIXES, MAX_BYTES, Found, file_bytes, near_image

PARQUET = (".parquet", ".pq")
_LIKELY = ("image", "bytes", "jpg", "jpeg", "png", "content", "data")
"""Names of columns that hold images, the likeliest first."""


@dataclass(frozen=True)
class Photographs:
    """Some photographs: files, or rows of a Parquet file.

    Attributes:
        paths: of the files; or of one Parquet file.
        names: what they are called in results.
        sizes: in bytes, which tell files from others that are called the same.
        column: of the images in a Parquet file, "" for files.
        start, stop: the first of its rows, and the one after the last.
        filesystem: pyarrow's; None for this machine's.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    column: str = ""
    start: int = 0
    stop: int = 0
    filesystem: Any = None

    def __repr__(self) -> str:
        return repr((self.names, self.sizes, self.column, self.start, self.stop))

    def __str__(self) -> str:
        if self.column:
            return f"{self.names[0]}, rows {self.start} to {self.stop - 1}"
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} to {self.names[-1]}"

    def read(self) -> Iterator[tuple[str, bytes | ImageError]]:
        """The name of each photograph with its contents, or what keeps them from being read."""
        if self.column:
            yield from self._rows()
            return
        for path, name in zip(self.paths, self.names, strict=True):
            try:
                yield name, self._contents(path)
            except ImageError as error:
                yield name, error
            except OSError as error:
                yield name, ImageError(f"{name}: cannot be read: {error.strerror or error}")

    def _contents(self, path: str) -> bytes:
        if self.filesystem is None:
            return file_bytes(Path(path))
        with self.filesystem.open_input_file(path) as file:
            if file.size() > MAX_BYTES:
                raise ImageError(f"{path}: more than the {MAX_BYTES} bytes allowed")
            return bytes(file.read())

    def _rows(self) -> Iterator[tuple[str, bytes | ImageError]]:
        at = 0
        with _parquet(self.paths[0], self.filesystem) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if at + rows <= self.start or at >= self.stop:
                    at += rows
                    continue
                for batch in file.iter_batches(32, row_groups=[group], columns=[self.column]):
                    for value in batch.column(0):
                        if self.start <= at < self.stop:
                            name, found = f"{self.names[0]}#{at}", value.as_py()
                            found = found.get("bytes") if isinstance(found, dict) else found
                            yield name, found or ImageError(f"{name}: holds no image")
                        at += 1


def find_photographs(sources: Sequence[str], most: int, filesystem: Any) -> list[Photographs]:
    """All photographs of the sources, in a fixed order, in stretches of at most `most`.

    Raises:
        ImageError: a source is missing, or holds none.
        ClusterError: pyarrow is not installed.
    """
    found: list[Photographs] = []
    for source in sources:
        system, files = _files(source, filesystem)
        before = len(found)
        images = [one for one in files if not one[1].lower().endswith(PARQUET)]
        for start in range(0, len(images), most):
            paths, names, sizes = zip(*images[start : start + most], strict=True)
            found.append(Photographs(paths, names, sizes, filesystem=system))
        for path, name, size in files:
            if name.lower().endswith(PARQUET):
                found += _stretches(path, name, size, system, most)
        if len(found) == before:
            raise ImageError(f"{source}: holds no images, and no Parquet files with images")
    return found


def _files(source: str, filesystem: Any) -> tuple[Any, list[tuple[str, str, int]]]:
    """The file system of a source, and path, name and size of each of its files."""
    if filesystem is None and "://" not in source:
        return None, _local(source)
    fs = _pyarrow("fs")
    system, path, scheme = filesystem, source, ""
    try:
        if system is None:
            scheme = source.partition("://")[0] + "://"
            system, path = fs.FileSystem.from_uri(source)
        info = system.get_file_info(path)
        entries = [info]
        if info.type == fs.FileType.Directory:
            entries = system.get_file_info(fs.FileSelector(path, recursive=True))
    except (OSError, ValueError) as error:
        raise ImageError(f"{source}: cannot be read: {error}") from None
    if info.type == fs.FileType.NotFound:
        raise ImageError(f"{source}: no such file or folder")
    endings = (*IMAGE_SUFFIXES, *PARQUET)
    wanted = [
        (one.path, f"{scheme}{one.path}", one.size or 0)
        for one in entries
        if one.type == fs.FileType.File
        and (one is info or one.path.lower().endswith(endings))
        and not one.base_name.startswith((".", "_"))
    ]
    return system, sorted(wanted)


def _local(source: str) -> list[tuple[str, str, int]]:
    """The same of files of this machine, as `jclnf fit` takes them."""
    path, found = Path(source), Found[Path]()
    if not os.path.exists(path):
        raise ImageError(f"{source}: no such file or folder{near_image(source)}")
    files = [path]
    if os.path.isdir(path):
        folder = found.look_through(path, deep=True)
        if folder is None:
            raise ImageError(found.problems[0])
        tables = [file for file in folder.others if file.name.lower().endswith(PARQUET)]
        files = folder.images + tables
    return [(str(file.absolute()), str(file), file.stat().st_size) for file in files]


def _stretches(path: str, name: str, size: int, system: Any, most: int) -> Iterator[Photographs]:
    try:
        with _parquet(path, system) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, ValueError):  # whoever takes it for an image will say that it is none
        yield Photographs((path,), (name,), (size,), filesystem=system)
        return
    column = _column(name, schema)
    for start in range(0, rows, most):
        stop = min(rows, start + most)
        yield Photographs((path,), (name,), (size,), column, start, stop, system)


def _column(name: str, schema: Any) -> str:
    """The column that holds images: bytes, or a structure with the field `bytes`."""
    pa = _pyarrow("types")
    binary = (pa.is_binary, pa.is_large_binary)
    there = {}
    for column in schema:
        kind, path = column.type, column.name
        if pa.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind, path = kind.field("bytes").type, f"{column.name}.bytes"
        if any(test(kind) for test in binary):
            there[column.name] = path
    for likely in (*_LIKELY, *there):
        if likely in there:
            return there[likely]
    raise ImageError(
        f"{name}: none of its columns holds bytes of images: {', '.join(schema.names)}"
    )


def _parquet(path: str, system: Any) -> Any:
    return _pyarrow("parquet").ParquetFile(path, filesystem=system)


def _pyarrow(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise ClusterError("pyarrow cannot be loaded: pip install 'jclnf[ray]'") from None
