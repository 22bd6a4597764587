"""Medians of numbers that come one after the other, from histograms of them."""

import numpy as np


class RunningMedians:
    """Medians of several numbers at once, each to half a bin of its histogram.

    The median is the middle of the first bin up to which there are half of the numbers; without
    any it is that of the first bin. Of a single number it is that number.

    Args:
        count: how many medians.
        bins: of each histogram.
        low, high: between which numbers; those outside count as in the first and last bin.
    """

    _BLOCK = 32
    """Bins that are counted together, to find the right ones sooner."""

    def __init__(self, count: int, bins: int, low: float, high: float) -> None:
        self._low, self._length, self._bins = low, high - low, bins
        blocks = -(-bins // self._BLOCK)
        self._histogram = np.zeros((count, blocks * self._BLOCK), np.int32)
        self._blocks = np.zeros((count, blocks), np.int32)
        self._rows = np.arange(count)
        self.numbers = 0
        """How many there have been of each."""

    def add(self, values: np.ndarray) -> None:
        """Count values `(count,)`."""
        scaled = (values - self._low) * self._bins / self._length
        at = np.clip(scaled, 0, self._bins - 1).astype(np.int64)
        self._histogram[self._rows, at] += 1
        self._blocks[self._rows, at // self._BLOCK] += 1
        self.numbers += 1

    def medians(self) -> np.ndarray:
        """The medians `(count,)`, float64, of all that was counted; of two numbers and more."""
        half = (self.numbers + 1) // 2
        cumulative = self._blocks.cumsum(1, dtype=np.int32)
        block = (cumulative >= half).argmax(1)
        before = cumulative[self._rows, block] - self._blocks[self._rows, block]
        shape = len(self._rows), -1, self._BLOCK
        inner = self._histogram.reshape(shape)[self._rows, block].cumsum(1, dtype=np.int32)
        at = block * self._BLOCK + (inner >= (half - before)[:, None]).argmax(1)
        width = self._length / self._bins
        return self._low + at * width + 0.5 * width

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` goes on from: the bins that are not empty."""
        flat = self._histogram.reshape(-1)
        filled = np.flatnonzero(flat)
        return {"filled": filled, "counts": flat[filled], "numbers": np.array(self.numbers)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, exactly."""
        self._histogram[:] = 0
        self._histogram.reshape(-1)[state["filled"]] = state["counts"]
        shape = len(self._rows), -1, self._BLOCK
        self._blocks = self._histogram.reshape(shape).sum(2, dtype=np.int32)
        self.numbers = int(state["numbers"])
