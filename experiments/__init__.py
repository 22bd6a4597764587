"""Experiments on this working copy: run them from its root, `python -m experiments.parity`."""

import importlib.util
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

_found = importlib.util.find_spec("jclnf")
_origin = Path((_found and _found.origin) or "nowhere").resolve()
if not _origin.is_relative_to(REPOSITORY / "jclnf"):
    print(f"experiments: not this working copy's jclnf, but {_origin.parent}", file=sys.stderr)
