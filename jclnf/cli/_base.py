"""What the commands of the command line share.

A command is a module that has `add_parser(subparsers)`, which describes the command, and
`run(args)`, which performs it and returns the exit code. Heavy modules are imported
inside `run`, so that help comes at once.
"""

import sys

PROGRAM = "jclnf"

OK, INCOMPLETE, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all done; something could not be done, the rest was; nothing could be; Ctrl-C."""


class CommandError(Exception):
    """What ends a command at once, with the exit code `UNUSABLE`; the message is a sentence."""


def complain(message: str) -> None:
    """Print one line of error on stderr."""
    print(f"{PROGRAM}: {printable(message)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return `text` on one line, with what cannot be printed (of file names, mostly) escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
