"""What the results of `jclnf fit` were made with, beside them, so that a run can go on."""

import json
import os
from datetime import UTC, datetime

import jclnf
from jclnf.action_units import ActionUnits
from jclnf.cli._commands import Fit
from jclnf.errors import OutputError
from jclnf.fitting import Model
from jclnf.outputs import abandon, by_option, check_same, growing, settle, write_bytes
from jclnf.runtime import device_report
from jclnf.video import model_digest, source_digest

TABLE, RECORD = "landmarks.csv", "landmarks.json"
"""Files of the results' folder."""
_NO_MATTER = (
    "paths",
    "out",
    "quiet",
    "resume",
    "model",
    "boxes",
    "device",
    "au_models",
    "ray",
    "workers",
)
"""Options that results do not depend on, or that name a file whose contents are compared."""


class FitRecord:
    """The file `RECORD`.

    Attributes:
        left: how a run was left that is to go on: "started", "complete", or "" to begin anew.
    """

    def __init__(self, options: Fit, model: Model, units: ActionUnits | None = None) -> None:
        """Read what an earlier run has left, if the options say that it is to go on.

        Raises:
            OutputError: that run had other settings, or does not say which.
        """
        self._path = options.out / RECORD
        self._folders = [os.getcwd()]
        self._depends = by_option(options, leave_out=_NO_MATTER) | {
            "the model": model_digest(model),
            "the device": device_report()["platform"],
            "the version of jclnf": jclnf.__version__,
        }
        if units is not None:
            self._depends["the predictors of action units"] = model_digest(units)
        if options.boxes is not None:
            self._depends["the boxes"] = source_digest(options.boxes)
        self._about = {"model": model.name, "device": device_report(), "depends": self._depends}
        self.left = ""
        self._place = growing(self._path, resume=options.resume)
        if options.resume and self._place.exists():
            try:
                found = json.loads(self._place.read_bytes())
                depends, finished = found["depends"], found["finished"]
                self._folders = sorted({*self._folders, *map(str, found["folders"])})
            except (OSError, ValueError, KeyError, TypeError):
                raise OutputError(f"{self._place}: is damaged: run without --resume") from None
            check_same(self._place, depends, self._depends)
            self.left = "started" if finished is None else "complete"
            table = options.out / TABLE
            if found.get("beside") and growing(table, resume=True) == table:
                self.left = ""  # it had no row yet: the table that is there is an earlier one's

    def absolute(self, image: str) -> set[str]:
        """What an image may be that an earlier run named, wherever it was started."""
        return {os.path.abspath(os.path.join(folder, image)) for folder in self._folders}

    def begin(self, *, beside: bool) -> None:
        """Say that there is a run, and whether its table is built beside an earlier one."""
        self._write(None, beside=beside)

    def complete(self) -> None:
        """Say that it is complete."""
        self._write(datetime.now(UTC).isoformat(timespec="seconds"))
        settle(self._path)

    def withdraw(self) -> None:
        """Leave what an earlier run said."""
        abandon(self._path)

    def _write(self, finished: str | None, **more: bool) -> None:
        about = self._about | {"folders": self._folders, "finished": finished} | more
        write_bytes(self._place, (json.dumps(about, indent=1) + "\n").encode())
