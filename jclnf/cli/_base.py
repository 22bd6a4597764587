"""Shared by the commands: exit codes, and lines on the terminal."""

import sys

from jclnf.runtime import say

PROGRAM = "jclnf"

OK, INCOMPLETE, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all done; something could not be done, the rest was; nothing could be; Ctrl-C."""


class CommandError(Exception):
    """Ends a command at once, with the exit code `UNUSABLE`; the message is a sentence."""


def complain(message: str) -> None:
    """Print one line of error on stderr."""
    say(f"{PROGRAM}: {printable(message)}", sys.stderr)


def printable(text: str) -> str:
    """Return `text` on one line, with what cannot be printed (of file names, mostly) escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
