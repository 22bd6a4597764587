"""Outputs: built beside their destination and put in place when whole, by one process at a time."""

from jclnf.outputs._write import (
    appending,
    discard,
    locked,
    make_folder,
    replacing,
    write_bytes,
    write_png,
)

__all__ = [
    "appending",
    "discard",
    "locked",
    "make_folder",
    "replacing",
    "write_bytes",
    "write_png",
]
