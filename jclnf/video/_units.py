"""What is kept of action units until a video has ended, and the final ones.

It is in a hidden file beside the table, a record for each face in each frame, which only grows:
memory does not.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from jclnf.action_units import FrameUnits, People, finish_output
from jclnf.openface import OpenFaceTable
from jclnf.outputs import discard, replacing

NOBODY = -1
"""The number of no face."""


class KeptUnits(NamedTuple):
    """What is known of a face in a frame, or of a frame without one."""

    face: int
    units: FrameUnits | None
    has_row: bool
    """Whether the table has a row of it."""

    def shown(self, wanted: bool) -> np.ndarray | None:
        """The action units to show for the time being, if there are to be any."""
        return self.units.shown if wanted and self.units is not None else None


class UnitsFile:
    """The file, and with it the action units of a table.

    Args:
        out, stem: where the results go, and the first part of their names.
        people: who there is.
    """

    def __init__(self, out: Path, stem: str, people: People) -> None:
        self.people = people
        self.path = out / f".{stem}.units"
        self._final = out / f".{stem}.final.csv"
        outputs = len(people.model.columns)
        numbers = [(name, "<i8") for name in ("face", "kind", "row")]
        self._record = np.dtype([*numbers, ("kept", "<f8", (outputs,))])
        self._file: BinaryIO | None = None

    def open(self, offset: int) -> None:
        """Begin, or go on with what was there up to an offset."""
        self._file = self.path.open("r+b" if offset else "wb")
        self._file.truncate(offset)
        self._file.seek(offset)

    def append(self, kept: Sequence[KeptUnits]) -> None:
        """Keep what is known of the next faces, in the order of the table's rows."""
        assert self._file is not None
        records = np.zeros(len(kept), self._record)
        for record, one in zip(records, kept, strict=True):
            record["face"], record["row"] = NOBODY, one.has_row
            if one.units is not None:
                record["face"], record["kind"] = one.face, one.units.kind
                record["kept"] = one.units.kept
        self._file.write(records.tobytes())

    def sync(self) -> int:
        """Wait until all of it is on the disk; how long the file is."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self, table: Path, form: OpenFaceTable) -> None:
        """Put the final action units into the table; doing it again changes nothing.

        Args:
            table: the file.
            form: how it is written.
        """
        assert self._file is not None
        self._file.close()
        self._file = None
        records = np.fromfile(self.path, self._record)
        for face in np.unique(records["face"]):
            if face != NOBODY:
                own = records["face"] == face
                of_median, kinds = self.people.of_median(int(face)), records["kind"][own]
                # One by one: copies of all would be as large as the file.
                for j, kept in enumerate(records["kept"].T):
                    kept[own] = finish_output(self.people.model, j, kept[own], kinds, of_median[j])
        # Not beside the table as other outputs are, since the table may be beside its place.
        with (
            replacing(self._final, lock=False) as part,
            table.open(newline="") as old,
            part.open("w", newline="") as new,
        ):
            new.write(old.readline())
            # One by one: a copy of those with a row would be as large as the file.
            for line, record in zip(old, (r for r in records if r["row"]), strict=True):
                known = record["face"] != NOBODY
                new.write(form.with_units(line, record["kept"]) if known else line)
        self._final.replace(table)

    def remove(self) -> None:
        """Remove the file, and what a killed process has left."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)
        self._final.unlink(missing_ok=True)
        discard(self._final)
