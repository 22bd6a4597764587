"""The command line: `jclnf COMMAND ...`."""

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from jclnf.cli._base import INCOMPLETE, INTERRUPTED, PROGRAM, UNUSABLE, CommandError, complain
from jclnf.cli._commands import COMMANDS
from jclnf.cli._options import Parser, add_options, join_numbers, read_options, unknown
from jclnf.errors import JclnfError
from jclnf.runtime import check_jax, interrupts_noted


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    import jclnf

    top = Parser(
        prog=PROGRAM,
        description="Facial landmarks, head pose and shape by Constrained Local Neural Fields.",
        epilog=f"Help on a command: {PROGRAM} COMMAND --help",
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {jclnf.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about = "List and describe models, and install OpenFace's."
    models = commands.add_parser("models", help=about, description=about)
    actions = models.add_subparsers(title="actions", metavar="ACTION", required=True)
    for words, (declared, function) in COMMANDS.items():
        above, _, name = words.rpartition(" ")
        about, _, more = inspect.cleandoc(declared.__doc__ or "").partition("\n\n")
        command = (actions if above else commands).add_parser(
            name,
            help=about,
            description=about,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command, declared)
        command.set_defaults(declared=declared, function=function, program=command.prog)
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
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout has gone (`jclnf ... | head`). What Python flushes at its end must
        # not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    return code


def _run(argv: Sequence[str]) -> int:
    values = argparse.Namespace()
    try:
        words = join_numbers(argv, [declared for declared, _ in COMMANDS.values()])
        values, others = parser().parse_known_args(words, values)
        if others:
            raise unknown(others, values.declared, values.program)
        module, _, function = values.function.partition(".")
        check_jax()
        run = getattr(import_module(f"jclnf.cli.{module}"), function)
        with interrupts_noted():
            return int(run(read_options(values.declared, values)))
    except SystemExit as e:  # help and version
        return e.code if isinstance(e.code, int) else UNUSABLE
    except (CommandError, JclnfError) as e:
        complain(str(e))
        return UNUSABLE
    except BrokenPipeError:
        raise
    except OSError as e:  # a name that no file can have, say
        complain(f"{e.filename}: {e.strerror}" if e.filename else str(e))
        return UNUSABLE
    except KeyboardInterrupt:
        then = getattr(getattr(values, "declared", None), "interrupted", "")
        complain(f"interrupted{then and ': '}{then}")
        return INTERRUPTED
