"""Shared by the experiments that kill runs at random moments: their options and their reports."""

import argparse
import json
from collections import Counter
from pathlib import Path

from experiments.common import Row, command_line, pivot, write_results

RUNS = "runs killed"


def killing_command_line(doc: str, *, kills: int, seed: int) -> argparse.ArgumentParser:
    """A parser of how often, how long and when to kill; its defaults are what is asked."""
    parser = command_line(doc)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--minutes", type=float, default=60, help="no further kills after these")
    parser.add_argument("--seed", type=int, default=seed, help="of the moments")
    parser.add_argument("--add", action="store_true", help="to the results that there are")
    return parser


def write_killed(
    folder: Path,
    title: str,
    text: str,
    counts: Counter[str],
    wrong: dict[str, list[str]],
    *,
    asked: int,
    add: bool,
) -> None:
    """Write the results.

    Args:
        folder, title: as for `write_results`.
        text: what was killed.
        counts: of `RUNS`, and whatever else is told.
        wrong: by the name of that count, a line for each thing that went wrong.
        asked: the least number of runs killed.
        add: to the results that are in the folder.
    """
    ((name, lines),) = wrong.items()
    counts = Counter({name: len(lines), **counts})
    if add:
        before = json.loads((folder / "results.json").read_text())
        lines = before["wrong"] + lines
        counts.update({row["quantity"]: int(row["measured"]) for row in before["rows"]})
    rows = [
        Row(
            quantity,
            "all",
            counts[RUNS],
            count,
            at_least=asked if quantity == RUNS else None,
            at_most=0 if quantity == name else None,
        )
        for quantity, count in counts.items()
    ]
    body = f"{text}\n\n{pivot(rows)}" + "".join(f"\n- {line}" for line in lines)
    write_results(folder, title, body, {"rows": rows, "wrong": lines})
