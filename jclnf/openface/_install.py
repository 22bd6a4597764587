"""Installation of OpenFace's model files, from a copy that the user has or from the network.

What there is to install stands in `manifest.json`: each file's path in OpenFace's model folder,
its size, SHA-256 and addresses, as far as they are known. A file is written under another name
until it has been checked, so that what is in place is whole; an installation that was cut short
goes on where it ended.
"""

import hashlib
import http.client
import json
import os
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jclnf.errors import InstallError, JclnfError, OutputError
from jclnf.openface._cen import read_cen_scale
from jclnf.outputs import replacing

MODELS_DIR = "OPENFACE_MODELS_DIR"
"""Environment variable: the folder that holds a folder of models for each OpenFace version."""

ACTION_UNITS_FOLDER = "AU_predictors"
"""What OpenFace calls the folder of its predictors of action units; it is beside that of the
landmark detectors, and is installed within it."""

MAX_BYTES = 2**30
"""Largest file that is installed where the manifest does not know the size."""

ATTEMPTS = 3
"""How often an address is asked for a file before the next one is, or the user."""

TIMEOUT = 30.0
"""Seconds without an answer after which an attempt has failed."""

PAUSE = 1.0
"""Seconds before the second attempt; before the third twice that."""

_CHUNK = 2**18
_MAX_ENTRIES = 200_000
_MAX_LIST_BYTES = 2**16
_LANDMARKS = 68


@dataclass(frozen=True)
class ManifestFile:
    """A file that can be installed; `size` (bytes) and `sha256` are None where not known."""

    path: str
    size: int | None
    sha256: str | None
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The files of a version of OpenFace, and their licence."""

    name: str
    version: str
    licence: str
    licence_url: str
    licence_summary: str
    files: tuple[ManifestFile, ...]


@dataclass
class Installed:
    """The outcome of an installation, by paths in the model folder."""

    folder: Path
    copied: list[str] = field(default_factory=list)
    there_already: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    """Files of no known hash: they were only looked through."""
    missing: list[str] = field(default_factory=list)
    """Files that the source does not have."""
    problems: list[str] = field(default_factory=list)
    """Files that could not be installed, each with the reason."""


Progress = Callable[[str, int], None]
"""Called with a file's path and how many bytes of it have come since the last call."""


class _Unusable(Exception):
    """A file offered is not the one wanted; the message says why."""


class _Interrupted(Exception):
    """A transfer ended early: what has come is kept for the next attempt."""


def read_manifest(path: Path | None = None) -> Manifest:
    """The list of OpenFace 2.2.0's files that comes with jclnf, or another in the same form."""
    path = Path(__file__).with_name("manifest.json") if path is None else path
    content = json.loads(path.read_text(encoding="utf-8"))
    licence = content["licence"]
    return Manifest(
        name=content["name"],
        version=content["version"],
        licence=licence["name"],
        licence_url=licence["url"],
        licence_summary="\n".join(licence["summary"]),
        files=tuple(
            ManifestFile(file["path"], file["size"], file["sha256"], tuple(file["urls"]))
            for file in content["files"]
        ),
    )


def models_folder(version: str = "2.2.0") -> Path:
    """Where OpenFace's model files are installed, whether or not they are.

    `$OPENFACE_MODELS_DIR/<version>/originals`, or without that variable the same below
    `OpenFaceModels` in the platform's folder for a user's data: where other programs that use
    these files look for them as well.
    """
    import platformdirs

    configured = os.environ.get(MODELS_DIR)
    root = (
        Path(configured).expanduser()
        if configured
        else platformdirs.user_data_path("OpenFaceModels", appauthor=False)
    )
    return root / version / "originals"


def installed_mains(folder: Path | None = None) -> list[Path]:
    """The main files (`main_*.txt`) in the folder of installed models."""
    folder = models_folder() if folder is None else folder
    return sorted(folder.glob("main_*.txt"))


def missing_files(manifest: Manifest, folder: Path) -> list[ManifestFile]:
    """Files still to be installed: those that are not there, or of another size than known."""

    def there(file: ManifestFile) -> bool:
        target = folder / file.path
        return target.is_file() and file.size in (None, target.stat().st_size)

    return [file for file in manifest.files if not there(file)]


def download(manifest: Manifest, folder: Path, *, progress: Progress | None = None) -> Installed:
    """Fetch what is missing in `folder` from the addresses of the manifest.

    Files that an address does not have, or that are not what the manifest says, are left out and
    named in the result; the others are installed all the same.

    Raises:
        InstallError: there is no room, `folder` cannot be written, or nothing answers. What has
            been fetched by then stays, and the next call goes on from there.
    """
    progress = progress or _no_progress
    done, wanted = _begin(manifest, folder)
    for file in wanted:
        if not file.urls:
            done.missing.append(file.path)
            continue
        try:
            with _installing(file, done) as part:
                _fetch(file, part, progress)
        except _Unusable as error:
            done.problems.append(f"{file.path}: {error}")
        except _Interrupted as error:
            raise InstallError(
                f"{file.path}: {error}. What has come is kept in {folder}: run the same command "
                "again to go on, or give a copy that you have as --from"
            ) from None
    return done


def install_from(
    manifest: Manifest,
    source: Path,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Installed:
    """Copy what is missing in `folder` from a folder, a zip or a tar archive that the user has.

    The files are found by their paths or, failing that, by their names, however deep they lie.
    Files that differ from the manifest's are left out and named in the result.

    Raises:
        InstallError: `source` is not there, cannot be read or holds none of the files; there is
            no room, or `folder` cannot be written.
    """
    if not os.path.exists(source):
        raise InstallError(f"{source}: there is no such folder or archive")
    progress = progress or _no_progress
    done, wanted = _begin(manifest, folder)
    if not wanted:
        return done
    try:
        with _opened(source) as members:
            found = _match(manifest, wanted, members)
            for file in wanted:
                if file.path not in found:
                    done.missing.append(file.path)
                    continue
                try:
                    with _installing(file, done) as part:
                        _copy(file, members[found[file.path]], part, progress)
                except _Unusable as error:
                    done.problems.append(f"{file.path}: {error}")
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, RuntimeError) as error:
        # RuntimeError is how zipfile says that a member is encrypted.
        raise InstallError(f"{source}: cannot be read: {error}") from None
    if len(done.missing) == len(wanted):
        raise InstallError(
            f"{source}: holds none of the missing files of {manifest.name} {manifest.version}; "
            "give its model folder, or the archive that it came in"
        )
    return done


def _no_progress(path: str, size: int) -> None:
    del path, size


def _begin(manifest: Manifest, folder: Path) -> tuple[Installed, list[ManifestFile]]:
    """Make the folder, and see what is there, what is wanted, and whether there is room."""
    wanted = missing_files(manifest, folder)
    paths = {file.path for file in wanted}
    done = Installed(folder, there_already=[f.path for f in manifest.files if f.path not in paths])
    try:
        for path in (folder, *((folder / file.path).parent for file in wanted)):
            path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InstallError(f"{folder}: cannot be written: {error.strerror or error}") from None
    needed = sum(file.size or 0 for file in wanted)
    if needed > free:
        raise InstallError(
            f"{folder}: there is no room: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB "
            f"are free. Make room, or set {MODELS_DIR} to a folder that has it"
        )
    return done, wanted


@contextmanager
def _installing(file: ManifestFile, done: Installed) -> Iterator[Path]:
    """Where a file is written until it has been checked; removed if unusable, kept if cut short."""
    try:
        with replacing(done.folder / file.path, keep=True) as part:
            try:
                yield part
                _check(file, part)
            except _Unusable:
                part.unlink(missing_ok=True)
                raise
    except OutputError as error:
        raise InstallError(
            f"{error}. What was installed before stays; make room, or set {MODELS_DIR} to another "
            "folder, and run the command again"
        ) from None
    done.copied.append(file.path)
    if file.sha256 is None:
        done.unverified.append(file.path)


def _check(file: ManifestFile, part: Path) -> None:
    size = part.stat().st_size
    if file.sha256 is None:
        if PurePosixPath(file.path).name.startswith("cen_patches"):
            try:
                read_cen_scale(part, _LANDMARKS)
            except JclnfError as error:
                raise _Unusable(f"not a file of convolutional experts ({error})") from None
        return
    with open(part, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest == file.sha256 or _is_in_windows_form(file, part):
        return
    if file.size is not None and size != file.size:
        raise _Unusable(f"has {size} bytes, not {file.size}")
    raise _Unusable("is damaged or of another version (its SHA-256 is not the known one)")


def _is_in_windows_form(file: ManifestFile, part: Path) -> bool:
    """Whether only the line endings differ; if so, `part` gets those of the original."""
    if part.stat().st_size > _MAX_LIST_BYTES:
        return False
    data = part.read_bytes().replace(b"\r\n", b"\n")
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return False
    part.write_bytes(data)
    return True


def _fetch(file: ManifestFile, part: Path, progress: Progress) -> None:
    """Bring `part` up to the whole file from the first address that has it."""
    failure: Exception | None = None
    for url in file.urls:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * attempt)
            try:
                _transfer(url, file, part, progress)
            except _Unusable as error:
                part.unlink(missing_ok=True)
                failure = error
                break
            except _Interrupted as error:
                failure = error
            else:
                return
    if failure is not None:
        raise failure


def _transfer(url: str, file: ManifestFile, part: Path, progress: Progress) -> None:
    """Ask an address for what `part` lacks, once."""
    have = part.stat().st_size if part.exists() else 0
    if file.size is not None and have == file.size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "jclnf"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if have and answer.status != http.client.PARTIAL_CONTENT:
                progress(file.path, -have)
                have = 0  # the server sends all of it
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            if file.size is not None and total not in (None, file.size):
                part.unlink(missing_ok=True)
                raise _Unusable(f"{url} offers {total} bytes, not {file.size}")
            with open(part, "ab" if have else "wb") as out:
                have += _pour(answer, out, file, progress, have)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
            raise _Interrupted(f"{url} has less of it than was fetched before") from None
        if error.code < http.client.INTERNAL_SERVER_ERROR:
            raise _Unusable(f"{url} answers {error.code} {error.reason}") from None
        raise _Interrupted(f"{url} answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Interrupted(f"{url} cannot be reached: {error.reason}") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _Interrupted(f"{url}: the connection broke: {error}") from None
    if total is not None and have < total:
        raise _Interrupted(f"{url}: the connection broke after {have} of {total} bytes")


def _copy(
    file: ManifestFile, open_member: Callable[[], Any], part: Path, progress: Progress
) -> None:
    with open_member() as stream, open(part, "wb") as out:
        _pour(stream, out, file, progress, 0)


def _pour(stream: Any, out: IO[bytes], file: ManifestFile, progress: Progress, have: int) -> int:
    """Write all of a stream; return the bytes. One of the size of a text in Windows' form may be a
    little longer than the original."""
    limit = MAX_BYTES if file.size is None else max(file.size, 2 * _MAX_LIST_BYTES)
    count = 0
    while chunk := stream.read(_CHUNK):
        count += len(chunk)
        if have + count > limit:
            raise _Unusable(f"is larger than {limit} bytes")
        out.write(chunk)
        progress(file.path, len(chunk))
    return count


@contextmanager
def _opened(source: Path) -> Iterator[dict[str, Callable[[], Any]]]:
    """Functions that open each regular file below a folder or in an archive, by its path there,
    from the folder's own name on; OpenFace's predictors of action units also from beside it."""
    if os.path.isdir(source):
        source = source.absolute()
        yield {
            path.relative_to(source.parent).as_posix(): partial(open, path, "rb")
            for folder in dict.fromkeys((source, source.parent / ACTION_UNITS_FOLDER))
            for path in _files_below(folder)
        }
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            yield {
                info.filename: partial(archive.open, info)
                for info in archive.infolist()
                if not info.is_dir()
            }
    elif tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            yield {
                member.name: partial(archive.extractfile, member)
                for member in archive
                if member.isfile()
            }
    else:
        raise InstallError(f"{source}: is neither a folder nor a zip or tar archive")


def _files_below(folder: Path) -> Iterable[Path]:
    count = 0
    for base, _, names in os.walk(folder):
        for name in names:
            count += 1
            if count > _MAX_ENTRIES:
                raise InstallError(
                    f"{folder}: holds over {_MAX_ENTRIES} files; give the model folder itself"
                )
            if (path := Path(base, name)).is_file():
                yield path


def _match(
    manifest: Manifest, wanted: Iterable[ManifestFile], members: Iterable[str]
) -> dict[str, str]:
    """Which member is which wanted file. Members' names decide nothing but this: where a file is
    written follows from the manifest alone."""
    names = [PurePosixPath(file.path).name for file in manifest.files]
    by_name: dict[str, list[str]] = {}
    for member in members:
        by_name.setdefault(PurePosixPath(member).name, []).append(member)
    found = {}
    for file in wanted:
        path = PurePosixPath(file.path)
        candidates = by_name.get(path.name, [])
        exact = [m for m in candidates if PurePosixPath(m).parts[-len(path.parts) :] == path.parts]
        if exact or (candidates and names.count(path.name) == 1):
            found[file.path] = min(exact or candidates, key=len)
    return found
