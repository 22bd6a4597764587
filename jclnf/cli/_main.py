"""The command line: `jclnf COMMAND ...`."""

import argparse
import os
import sys
from collections.abc import Sequence

from jclnf.cli import _eval, _fit, _models, _train, _tune, _video
from jclnf.cli._base import INCOMPLETE, INTERRUPTED, PROGRAM, UNUSABLE, CommandError, complain

COMMANDS = (_fit, _video, _eval, _train, _tune, _models)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    import jclnf

    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Facial landmarks, head pose and shape by Constrained Local Neural Fields.",
        epilog=f"Help on a command: {PROGRAM} COMMAND --help",
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {jclnf.__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments without the program's name; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A file name that the terminal's encoding lacks must not end the program.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout has gone (`jclnf ... | head`). What Python flushes at its end must
        # not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = parser().parse_args(argv)
        return int(args.run(args))
    except SystemExit as e:  # from argparse: help, version, wrong usage
        return e.code if isinstance(e.code, int) else UNUSABLE
    except CommandError as e:
        complain(str(e))
        return UNUSABLE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
