"""What the files of a folder are: images, videos, or neither."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from jclnf.errors import OutputError, near_file
from jclnf.outputs import outputs_in

Named = TypeVar("Named", str, Path)

IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "dib", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm"),
        *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
"""Endings, in lower case, by which images are known."""

VIDEO_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("264", "265", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "h264", "h265", "hevc"),
        *("lrv", "m2t", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mod", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogv", "tod", "ts", "vob", "webm", "wmv"),
    )
)
"""Endings, in lower case, by which videos are known."""

_SHARED_SUFFIXES = frozenset((".mod", ".ts"))
"""Endings that other kinds of files have too, source text for one."""

_RAW_SUFFIXES = frozenset(
    f".{kind}" for kind in ("arw", "cr2", "dng", "iiq", "nef", "nrw", "pef", "sr2", "srw", "3fr")
)
"""Endings of cameras' raw files, which begin as TIFF does and hold a small preview first."""

_HEAD = 400
_NAMED = 4
"""Names that a line shows, at most."""

REMEDY = "copy it again, or export it as PNG or JPEG"
"""What to do about an image that cannot be read."""

_MOST_FILES = 1_000
"""Files of a folder among which one that can be read is looked for, to suggest the folder."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SOUND_BRANDS = {b"M4A ", b"M4B ", b"M4P "}


def kind_of(path: Path) -> str:
    """What a file is: "image", "video", or "" for anything else.

    A usual ending is believed, as whoever reads the file says what is wrong with it, and opening
    each of many files takes long; any other file is known by its contents.
    """
    ending = path.suffix.lower()
    if ending in IMAGE_SUFFIXES:
        return "image"
    if ending in VIDEO_SUFFIXES - _SHARED_SUFFIXES:
        return "video"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    if ending in _RAW_SUFFIXES and head.startswith((b"II*\0", b"MM\0*")):
        return ""
    kind = kind_of_contents(head)
    return "image" if kind == "heif" else kind


def kind_of_contents(head: bytes) -> str:
    """The kind of a file that begins so: as `kind_of`, or "heif", an image for which a library of
    its own is needed."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")):
        return "image"
    if head.startswith((b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51")):
        return "image"
    if (
        head.startswith(b"BM")
        and head[15:18] == b"\0\0\0"
        and head[14] in (12, 40, 52, 56, 108, 124)
    ):
        return "image"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in (b"\n", b"\r", b" ", b"\t"):
        return "image"
    if head.startswith(b"RIFF"):
        return {b"WEBP": "image", b"AVI ": "video"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head[8:12], head[16 : int.from_bytes(head[:4], "big")])
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "video"
    if head.startswith(
        (b"\x1a\x45\xdf\xa3", b"FLV\1", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x06\x0e\x2b\x34")
    ):
        return "video"
    if head.startswith((b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x1f\x07\0")):
        return "video"
    if any(head[at::size][:2] == b"GG" for at, size in ((0, 188), (4, 192))):
        return "video"
    for start in (b"\0\0\0\1", b"\0\0\1"):  # of H.264 and H.265 without a container
        if head.startswith(start):
            unit = head[len(start) : len(start) + 1] or b"\0"
            return "video" if unit in b"\x09\x27\x47\x67\x40\x46" else ""
    return ""


def _kind_of_brands(major: bytes, others: bytes) -> str:
    """The kind of a file of the MP4 family."""
    brands = {major, *(others[at : at + 4] for at in range(0, len(others), 4))}
    if brands & {b"avif", b"avis"}:
        return "image"
    if major in _HEIF_BRANDS:
        return "heif"
    return "" if major in _SOUND_BRANDS else "video"


@dataclass
class Folder:
    """The files of a folder by their kind, each list sorted; hidden ones are none of them.

    Attributes:
        path: the folder.
        images, videos: what can be used, unless it is damaged.
        others: files of another kind.
        outputs: images and videos that runs of jclnf have written, by their record.
        folders: folders that were not looked into: links to some, or all if the look was not deep.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @staticmethod
    def of(path: str | os.PathLike[str], *, deep: bool = False) -> "Folder":
        """Look through a folder.

        Args:
            path: the folder.
            deep: and those in it.

        Raises:
            OSError: it cannot be read.
            OutputError: the record of its outputs is damaged.
        """
        found = Folder(Path(path))
        found._add(found.path, deep)
        for files in (found.images, found.videos, found.others, found.outputs, found.folders):
            files.sort()
        return found

    def _add(self, path: Path, deep: bool) -> None:
        written = outputs_in(path)
        with os.scandir(path) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        for entry in entries:
            file = path / entry.name
            if entry.is_dir():
                if entry.name in written:
                    continue
                if not deep or entry.is_symlink():  # which may lead round in a circle
                    self.folders.append(file)
                else:
                    self._add(file, deep)
                continue
            kind = kind_of(file) if entry.is_file() else ""
            if entry.name in written:
                if kind:
                    self.outputs.append(file)
            elif kind == "video":
                self.videos.append(file)
            else:
                (self.images if kind else self.others).append(file)

    def left_out(self, what: str, *more: tuple[str, Sequence[Path]]) -> list[str]:
        """A line that names what is not used of the folder and of those in it; none if that is
        nothing.

        Args:
            what: what is used, "images" say.
            more: what else is not used and why, besides other files, outputs and folders.
        """
        reasons = [
            (f"no {what}", self.others),
            *more,
            ("written by jclnf", self.outputs),
            ("links to folders", self.folders),
        ]
        inside = [(why, [str(f.relative_to(self.path)) for f in files]) for why, files in reasons]
        parts = [f"{why}: {names(files)}" for why, files in inside if files]
        count = sum(len(files) for _, files in reasons)
        return [f"{self.path}: {count} left out ({'; '.join(parts)})"] if parts else []


@dataclass
class Found(Generic[Named]):
    """What paths on a command line name.

    Attributes:
        files: each once.
        problems: a line for each path that names none.
        notes: a line for each folder of which something is not used.
    """

    files: list[Named] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _there: set[str] = field(default_factory=set, repr=False)

    def look_through(self, path: Path, *, deep: bool = False) -> Folder | None:
        """See `Folder.of`; None, and a problem more, if it cannot be read."""
        try:
            return Folder.of(path, deep=deep)
        except OSError as error:
            self.problems.append(f"{path}: cannot be read: {error.strerror or error}")
            return None

    def add(self, files: Iterable[Named]) -> None:
        """Those that are not there yet, whatever way they are named."""
        for file in files:
            absolute = os.path.abspath(file)
            if absolute not in self._there:
                self._there.add(absolute)
                self.files.append(file)


def near_input(
    path: str | os.PathLike[str],
    file: Callable[[Path], bool],
    within: Callable[[Path], bool] | None = None,
) -> str:
    """As `near_file`, of an input: what jclnf has written is not suggested.

    Args:
        path: what is not there.
        file: whether a file could have been meant.
        within: whether one could have been meant by a folder that it is in; `file` if not given.
    """
    within = within or file

    def through(other: str) -> bool:
        return os.path.isdir(other) and suits(other)

    def suits(other: str) -> bool:
        here = Path(other)
        if here.name in _written_in(here.parent):
            return False
        if here.is_dir():
            return any(map(within, islice(_own_files(here), _MOST_FILES)))
        return file(here)

    return near_file(path, suits, through)


def near_image(path: str | os.PathLike[str]) -> str:
    """As `near_input`: an image, or a folder of images."""
    return near_input(path, lambda file: kind_of(file) == "image")


def _own_files(folder: Path) -> Iterator[Path]:
    """The files in a folder and those in it, without hidden ones and what jclnf has written."""
    for here, folders, files in os.walk(folder):
        left_out = _written_in(Path(here))
        folders[:] = [f for f in folders if f not in left_out and not f.startswith(".")]
        for name in files:
            if name not in left_out and not name.startswith("."):
                yield Path(here, name)


def _written_in(folder: Path) -> Collection[str]:
    """As `outputs_in`, of a folder whose record may be damaged."""
    try:
        return outputs_in(folder)
    except OutputError:
        return ()


def names(files: Sequence[Path | str]) -> str:
    """The names of a few files, and how many more there are."""
    shown = ", ".join(f.name if isinstance(f, Path) else f for f in files[:_NAMED])
    more = len(files) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
