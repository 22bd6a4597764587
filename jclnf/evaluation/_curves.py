"""Drawing cumulative error curves; needs matplotlib."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jclnf.evaluation._metrics import cumulative_error_curve

_SAMPLES = 501


def draw_curves(errors: Mapping[str, Any], *, limit: float = 10.0, label: str = "error") -> bytes:
    """Draw what part of the faces has at most which error.

    Args:
        errors: `(b,)` in % by the name of the method or measure; NaN where a face was not fitted.
        limit: where the axis of errors ends.
        label: of that axis.

    Returns:
        The image as a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Not pyplot, which keeps figures and picks a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    at = np.linspace(0, limit, _SAMPLES)
    for name, values in errors.items():
        axes.plot(at, 100 * cumulative_error_curve(values, at), label=name)
    axes.set(xlim=(0, limit), ylim=(0, 100), xlabel=f"{label}, %", ylabel="faces, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
