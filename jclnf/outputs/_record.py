"""What runs have written into a folder, and from what.

The record is a file in the folder itself, so that it goes where the outputs go. By it an output is
known when it is met again: it is not taken for an input, and only its own source's next run may
replace it. What is not in the record is somebody else's, and is never replaced.
"""

import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jclnf.errors import OutputError
from jclnf.outputs._write import locked, write_bytes

RECORD = ".jclnf.json"
"""Name of the record in each folder of outputs."""


class Origin(NamedTuple):
    """What an output was made by and from."""

    command: str
    source: str = ""
    """Absolute path of the input; empty for what is made of all of them."""
    digest: str = ""
    """Tells the input even if it has moved; may be empty."""

    def same(self, other: "Origin") -> bool:
        """Whether both are of the same command and input."""
        moved = self.digest != "" and self.digest == other.digest
        return self.command == other.command and (self.source == other.source or moved)


def outputs_in(folder: str | os.PathLike[str]) -> dict[str, Origin]:
    """The names of files and folders that runs have written into a folder.

    Raises:
        OutputError: the record is damaged.
    """
    file = Path(folder) / RECORD
    try:
        outputs = json.loads(file.read_bytes())["outputs"]
        return {str(name): Origin(*map(str, origin)) for name, origin in outputs.items()}
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputError(
            f"{file}: is damaged: remove it; the outputs in this folder are then taken for files "
            "of your own"
        ) from None


def claim(
    folder: str | os.PathLike[str],
    command: str,
    *,
    fixed: Sequence[str] = (),
    sources: Sequence[Origin] = (),
    stems: Sequence[str] = (),
    endings: Sequence[str] = (),
    spared: Sequence[str] = (),
    inputs: Iterable[str | os.PathLike[str]] = (),
    anew: bool = False,
) -> list[str]:
    """Take names in a folder for what a run will write, and put them into the record.

    No name is given twice, whatever the case of its letters, nor one of an input, of a file that is
    not in the record, or of an output that another source has left.

    Args:
        folder: where the run writes; it must be there.
        command: which command it is of.
        fixed: names that are to be had as they are.
        sources: what the others are made from; `Origin.command` is `command`.
        stems: of each source, the name to begin with; it gets a number if it cannot be had.
        endings: what follows the stems.
        spared: endings of names that the run does not write, but might have.
        inputs: files that the run reads.
        anew: all that earlier runs of the command have left may be replaced.

    Returns:
        The stem of each source.

    Raises:
        OutputError: a fixed name cannot be had, or the record not be written.
    """
    folder = Path(folder)
    with locked(folder / RECORD, wait=60.0):
        outputs = outputs_in(folder)
        names = _Names(folder, command, outputs, [os.path.realpath(p) for p in inputs], anew)
        for name in fixed:
            if not names.free(name, Origin(command)):
                own = os.path.realpath(folder / name) in names.read
                why = "is read by this run" if own else f"was not written by jclnf {command}"
                raise OutputError(f"{folder / name}: {why}, and is kept: name another folder")
        names.taken |= {name.casefold() for name in fixed}
        new = dict.fromkeys(fixed, Origin(command))
        chosen = []
        before = _names_of_sources(outputs, sources)
        for origin, stem in zip(sources, stems, strict=True):
            found = names.choose(origin, stem, endings, spared, before[origin])
            new |= {found + ending: origin for ending in endings}
            chosen.append(found)
        if any(outputs.get(name) != origin for name, origin in new.items()):
            text = json.dumps({"outputs": outputs | new}, indent=0)
            write_bytes(folder / RECORD, text.encode(), lock=False)
    return chosen


class _Names:
    """The names in a folder, as they are given to what a run will write."""

    def __init__(
        self, folder: Path, command: str, outputs: dict[str, Origin], read: list[str], anew: bool
    ) -> None:
        self._folder, self._command, self._anew = folder, command, anew
        self._known = {name.casefold(): origin for name, origin in outputs.items()}
        self._there = {name.casefold() for name in os.listdir(folder)}
        self._next: dict[str, int] = {}
        self.read = frozenset(read)
        self.taken: set[str] = set()

    def free(self, name: str, origin: Origin) -> bool:
        """Whether a file of this name may be written from there."""
        key = name.casefold()
        if key in self._there and os.path.realpath(self._folder / name) in self.read:
            return False
        if key not in self._known:
            return key not in self._there
        before = self._known[key]
        return before.same(origin) or (self._anew and before.command == self._command)

    def choose(
        self,
        origin: Origin,
        stem: str,
        endings: Sequence[str],
        spared: Sequence[str],
        before: Collection[str],
    ) -> str:
        """Give a source the name that it had before, or else the first that is to be had."""
        found = None
        for candidate in itertools.islice(_numbered(stem), len(self._known) * bool(before)):
            had = any(candidate + ending in before for ending in endings)
            if had and self._to_be_had(candidate, origin, endings, spared):
                found = candidate
                break
        if found is None:
            # Many sources may be called the same: those before have tried the first numbers.
            start = self._next.get(stem.casefold(), 1)
            for number, found in enumerate(_numbered(stem, start), start):
                if self._to_be_had(found, origin, endings, spared):
                    self._next[stem.casefold()] = number
                    break
        assert found is not None
        self.taken |= {(found + ending).casefold() for ending in (*endings, *spared)}
        return found

    def _to_be_had(
        self, stem: str, origin: Origin, endings: Sequence[str], spared: Sequence[str]
    ) -> bool:
        names = [stem + ending for ending in endings]
        others = [stem + ending for ending in spared]
        given = any(name.casefold() in self.taken for name in (*names, *others))
        return not given and all(self.free(name, origin) for name in names)


def _numbered(stem: str, start: int = 1) -> Iterator[str]:
    """A stem, and then the same with numbers from 2."""
    for number in itertools.count(start):
        yield stem if number == 1 else f"{stem}_{number}"


def _names_of_sources(
    outputs: dict[str, Origin], sources: Sequence[Origin]
) -> dict[Origin, set[str]]:
    """Of each source, the names of what was made from it before."""
    paths: dict[tuple[str, str], set[str]] = {}
    for name, origin in outputs.items():
        for key in (origin.source, origin.digest):
            if key:
                paths.setdefault((origin.command, key), set()).add(name)
    found = {}
    for origin in sources:
        names = paths.get((origin.command, origin.source), set())
        found[origin] = names or paths.get((origin.command, origin.digest), set())
    return found
