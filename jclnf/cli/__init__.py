"""The command line: `jclnf COMMAND ...`."""

from jclnf.cli._main import main

__all__ = [
    "main",
]
