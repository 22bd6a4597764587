"""Options of a command, declared once as the fields of a dataclass.

A field is the option of its name, or a positional argument if it has no default. Its type says how
it is read: `bool` is a switch (`--no-NAME` where the default is true), `Literal` a choice, a
dataclass stands for its own fields, a tuple of fixed length is numbers with commas or blanks
between them. `Annotated` adds the help and, in dicts, what a type cannot say: the option's `name`,
the title of its `group`, what it is `exclusive` with, the `least` numbers of a tuple, or anything
that `add_argument` of `argparse` takes.

`argparse` and not `tyro` or `typer`, since those refuse `--box 1,2,3,4`, know no option whose value
may be left out, print errors as boxes of several lines, and take 0.2 and 0.4 s before they help.
"""

import argparse
import math
import re
from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from jclnf.cli._base import CommandError
from jclnf.errors import did_you_mean, option_of

_COUNTS = {1: "one", 2: "two", 4: "four"}


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise CommandError."""
        raise CommandError(f"{message} (`{self.prog} --help` says more)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            near = did_you_mean(str(value), names)
            raise argparse.ArgumentError(
                action, f"{str(value)!r} is not one of {', '.join(names)}{near}"
            )


def add_options(parser: argparse.ArgumentParser, declared: Any) -> None:
    """Describe the options of a dataclass to a parser."""
    places: dict[Any, Any] = {}
    for name, kind, default, notes in _declared(declared):
        text = "".join(note for note in notes if isinstance(note, str))
        extra = dict(ChainMap(*(note for note in notes if isinstance(note, dict))))
        place: Any = parser
        if title := extra.pop("group", None):
            place = places[title] = places.get(title) or parser.add_argument_group(title)
        if word := extra.pop("exclusive", None):
            group = places.get(word) or place.add_mutually_exclusive_group()
            place = places[word] = group
        flag = option_of(name, default, notes)
        extra.pop("name", None)
        least = extra.pop("least", None)
        if default is MISSING and not extra.get("required"):
            several = get_origin(kind) is tuple
            kind = get_args(kind)[0] if several else kind
            reading = {"type": kind} | ({"nargs": "+"} if several else {})
            place.add_argument(name, help=text, **reading | extra)
            continue
        if kind is bool:
            reading = {"action": "store_false" if default else "store_true"}
            text = f"without {text}" if default else text
        elif get_origin(kind) is Literal:
            reading = {"choices": get_args(kind), "type": type(get_args(kind)[0])}
        elif get_origin(kind) is tuple:
            most = _most(kind)
            reading = {"type": partial(_numbers, flag, get_args(kind)[0], least, most)}
        else:
            reading = {"type": _number if kind is float else kind}
            reading |= {"metavar": "N"} if kind is int else {}
        shown = kind is not bool and default not in (None, MISSING) and "(default" not in text
        if shown and text != argparse.SUPPRESS:
            text += " (default: %(default)s)"
        place.add_argument(flag, dest=name, default=default, help=text, **reading | extra)


def read_options(declared: Any, values: argparse.Namespace) -> Any:
    """The dataclass with the values that a parser found."""
    found = {}
    for name, kind in get_type_hints(declared).items():
        value = read_options(kind, values) if is_dataclass(kind) else getattr(values, name)
        found[name] = tuple(value) if isinstance(value, list) else value
    return declared(**found)


def join_numbers(words: Sequence[str], declared: Sequence[Any]) -> list[str]:
    """Arguments in which the numbers of an option follow it as one: `--box=1,2,3,4`."""
    most = {
        option_of(name, default, notes): _most(kind)
        for one in declared
        for name, kind, default, notes in _declared(one)
        if get_origin(kind) is tuple and default is not MISSING
    }
    joined, at = [], 0
    while at < len(words):
        word = words[at]
        at += 1
        numbers: list[str] = []
        while at < len(words) and _count(" ".join(numbers)) < most.get(word, 0):
            if _count(words[at]) < 0:
                break
            numbers.append(words[at])
            at += 1
        joined.append(f"{word}={' '.join(numbers)}" if numbers else word)
    return joined


def unknown(words: Sequence[str], declared: Any, program: str) -> CommandError:
    """The error about arguments that no option takes."""
    flags = [
        option_of(name, default, notes)
        for name, _, default, notes in _declared(declared)
        if default is not MISSING
    ]
    word = words[0].partition("=")[0]
    if not word.startswith("-"):
        return CommandError(f"{word!r} is one argument too many (`{program} --help` says more)")
    near = did_you_mean(word, [*flags, "--help"])
    return CommandError(f"{program} has no option {word}{near} (`{program} --help` says more)")


def _declared(declared: Any) -> Iterator[tuple[str, Any, Any, tuple[Any, ...]]]:
    """Name, type, default and notes of each field."""
    hints = get_type_hints(declared, include_extras=True)
    for field in fields(declared):
        hint = hints[field.name]
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if is_dataclass(kind):
            yield from _declared(kind)
            continue
        if NoneType in get_args(kind):
            (kind,) = (part for part in get_args(kind) if part is not NoneType)
        yield field.name, kind, field.default, tuple(notes)


def _most(kind: Any) -> int:
    """How many numbers a tuple holds."""
    return 99 if Ellipsis in get_args(kind) else len(get_args(kind))


def _numbers(flag: str, kind: Any, least: int | None, most: int, text: str) -> tuple[Any, ...]:
    """Numbers with commas between them; where fewer are enough, the last stands for the rest."""
    fixed = most < 99
    least = least or (most if fixed else 1)
    try:
        read = _number if kind is float else kind
        numbers = tuple(read(word) for word in re.split(r"\s*,\s*|\s+", text.strip()))
    except ValueError:
        numbers = ()
    if not least <= len(numbers) <= most:
        counts = [_COUNTS[least]] * fixed + [_COUNTS.get(most, "")] * (fixed and most > least)
        what = " ".join([" or ".join(counts), "whole" * (kind is int), "numbers"])
        raise CommandError(
            f"{flag} takes {' '.join(what.split())}, with commas or blanks between, not {text!r}"
        )
    return numbers + numbers[-1:] * (most - len(numbers) if fixed else 0)


def _number(text: str) -> float:
    """A finite number. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


_number.__name__ = "number"  # as which argparse calls it: "invalid number value"


def _count(word: str) -> int:
    """How many numbers these are, with commas or blanks between them; -1 if it is anything else."""
    parts = word.replace(",", " ").split()
    try:
        return len([float(part) for part in parts])
    except ValueError:
        return -1
