"""Work for the processes of a cluster, which import nothing more for it."""

import os
import signal
import time
from pathlib import Path


class Squares:
    """Squares numbers, and notes each time how many threads there may be; some of them kill the
    process so many times."""

    def __init__(self, notes: Path, deadly: dict[int, int]) -> None:
        self.notes, self.deadly = notes, deadly

    def __call__(self, number: int) -> int:
        with (self.notes / str(number)).open("a") as file:
            file.write(f"{os.environ['NPROC']}\n")
        begun = (self.notes / str(number)).read_text().count("\n")
        if begun <= self.deadly.get(number, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return number * number
