"""What a result depends on, and how a run that is to go on differs from the one that was ended."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jclnf.errors import OutputError, option_of


def by_option(settings: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass by the options of the command line that they are: `Annotated` may
    give them another `name`, and what is true by default is an option to leave it out."""
    found = {}
    hints = get_type_hints(type(settings), include_extras=True)
    for each in fields(settings):
        if each.name in leave_out:
            continue
        value = getattr(settings, each.name)
        option = option_of(each.name, each.default, get_args(hints[each.name])[1:])
        found[option] = not value if each.default is True else value
    return found


def check_same(path: Path, before: Any, now: Mapping[str, Any]) -> None:
    """Refuse to go on with what a run left that would have had other results.

    Args:
        path: where the run left what it depended on.
        before: that; `now` as it was written to JSON.
        now: what the results depend on, by names that a message can show.

    Raises:
        OutputError: the two differ; it names in what.
    """
    before = before if isinstance(before, dict) else {}
    now = json.loads(json.dumps(now))
    other = [
        f"{name} ({_shown(before.get(name))} there, {_shown(now.get(name))} now)"
        if name.startswith("--")
        else name
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if other:
        raise OutputError(
            f"{path}: the run there had other settings, or something else has changed: "
            f"{', '.join(other)}: give the same, another --out, or run without --resume to begin "
            "again"
        )


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "not given"
    if value is True:
        return "given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
