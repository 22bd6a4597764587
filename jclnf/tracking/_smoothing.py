"""Less jitter, for whoever wants that: the One-Euro filter.

It follows slow movements smoothly and fast ones quickly. It also takes away what tremor, blinks and
quick expressions look like: nothing in jclnf uses it unless it is asked for.

Source: Casiez, Roussel, Vogel, "1 Euro filter: a simple speed-based low-pass filter for noisy input
in interactive systems" (CHI 2012).
"""

import numpy as np

from jclnf.errors import ParamsError


class OneEuro:
    """The One-Euro filter of a vector of signals, each on its own.

    Args:
        min_cutoff: cut-off frequency in Hz of signals that stand still; the lower, the smoother.
        beta: by how much the cut-off rises with the speed of a signal (Hz for each unit a second);
            the higher, the less a fast movement lags behind.
        derivative_cutoff: cut-off frequency in Hz of the speed.
    """

    def __init__(
        self, min_cutoff: float = 1.0, beta: float = 0.05, derivative_cutoff: float = 1.0
    ) -> None:
        if not (0 < min_cutoff < np.inf and 0 <= beta < np.inf and 0 < derivative_cutoff < np.inf):
            raise ParamsError(
                f"one-euro filter: cut-off {min_cutoff:g} and {derivative_cutoff:g} Hz must be "
                f"positive, beta {beta:g} at least 0"
            )
        self.min_cutoff, self.beta, self.derivative_cutoff = min_cutoff, beta, derivative_cutoff
        self.reset()

    def reset(self) -> None:
        """Forget what was: the next values pass as they are."""
        self._time = -np.inf
        self._values: np.ndarray | None = None
        self._speed: np.ndarray | None = None

    def step(self, time: float, values: np.ndarray) -> np.ndarray:
        """Values as they are at a time, smoothed.

        Args:
            time: seconds; it must have increased since the last step.
            values: `(k,)`. One that is not finite passes as it is, and that signal begins anew.
        """
        values = np.asarray(values, np.float64)
        if self._values is None or self._speed is None or not time > self._time:
            self._time, self._values, self._speed = time, values, np.zeros_like(values)
            return values
        elapsed = time - self._time
        with np.errstate(invalid="ignore"):
            speed = (values - self._values) / elapsed
            part = _part(self.derivative_cutoff, elapsed)
            speed = part * speed + (1 - part) * self._speed
            part = _part(self.min_cutoff + self.beta * np.abs(speed), elapsed)
            smoothed = part * values + (1 - part) * self._values
        anew = ~np.isfinite(smoothed)
        self._time = time
        self._speed = np.where(anew, 0.0, speed)
        self._values = np.where(anew, values, smoothed)
        return self._values


def _part(cutoff: float | np.ndarray, elapsed: float) -> float | np.ndarray:
    """The part of a new value in a first-order low-pass filter: `1 / (1 + 1 / (2 pi f t))`."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * elapsed))
