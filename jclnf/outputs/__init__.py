"""Outputs: built beside their destination and put in place when whole, by one process at a time,
and known when they are met again."""

from jclnf.outputs._record import RECORD, Origin, claim, outputs_in
from jclnf.outputs._resume import by_option, check_same
from jclnf.outputs._write import (
    abandon,
    appending,
    discard,
    growing,
    locked,
    make_folder,
    part_of,
    replacing,
    settle,
    write_bytes,
    write_png,
)

__all__ = [
    "RECORD",
    "Origin",
    "abandon",
    "appending",
    "by_option",
    "check_same",
    "claim",
    "discard",
    "growing",
    "locked",
    "make_folder",
    "outputs_in",
    "part_of",
    "replacing",
    "settle",
    "write_bytes",
    "write_png",
]
