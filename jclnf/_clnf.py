"""`CLNF`: the familiar object interface to the fit."""

from pathlib import Path
from typing import Any

import numpy as np

from jclnf.files import load_model
from jclnf.fitting import FitResult, FitStatus, Model, fit
from jclnf.params import Arithmetic, FitParams, on_host


class CLNF:
    """A landmark fitter with a model and settings of its own.

    >>> clnf = CLNF(model_dir="OpenFace/model", max_iterations=10)
    >>> landmarks, info = clnf.fit(gray, face_bbox)

    Args:
        model_dir: an OpenFace model folder or main file, a jclnf model, a `Model`, or nothing for
            the bundled model.
        max_iterations: iterations of each pass at each window size; the model's own default if
            not given.
        arithmetic: `"exact"` or `"openface"`, see `FitParams`; the model's own default (exact) if
            not given.
        params: settings instead of the model's own.

    Raises:
        ModelFileError: there is no such model, or its files are damaged.
    """

    def __init__(
        self,
        model_dir: str | Path | Model | None = None,
        max_iterations: int | None = None,
        *,
        arithmetic: str | Arithmetic | None = None,
        params: FitParams | None = None,
    ) -> None:
        self.model = model_dir if isinstance(model_dir, Model) else load_model(model_dir)
        settings = self.model.defaults if params is None else params
        if max_iterations is not None:
            settings = settings.replace(iterations=max_iterations)
        if arithmetic is not None:
            settings = settings.replace(arithmetic=arithmetic)
        self.params = settings

    def fit(self, gray: np.ndarray, face_bbox: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Fit the face in a box.

        Args:
            gray: `(h, w)` NumPy array of grey levels 0-255.
            face_bbox: (x, y, w, h) in pixels.

        Returns:
            The landmarks, `(n, 2)` pixels (x, y), and what there is to know about the fit, see
            `describe`.

        Raises:
            ImageError, BoxError: inputs in which no face can be fitted.
        """
        result = on_host(fit(self.model, gray, face_bbox, self.params))
        return result.landmarks, describe(result, self.params)


def describe(result: FitResult, params: FitParams) -> dict[str, Any]:
    """A fit's course and outcome in plain NumPy and Python values.

    Returns:
        `converged`, `status` (a `FitStatus`), `message`; `success`, `confidence` and
        `landmark_confidence` (None if the model cannot tell), `parts` (see `FitResult`);
        `iterations` performed in all; `likelihood`, `landmark_likelihood`, `visible`; `scale`
        (px/mm), `rotation` (pitch, yaw, roll), `translation`, `shape`, `landmarks3d`; and by fitted
        scale, as lists of dicts under
        `windows`: `window`, `view`, `peak_offsets` (n, 2) of the response peaks from the centre of
        the map, and for each of the passes `rigid` and `nonrigid` the arrays `mean_shift` (norm
        over all landmarks, response px), `update` (norm of the parameter update), `movement`
        (norm, image px), `likelihood` and `peak_distance` (mean distance of the visible landmarks
        from their peaks, response px), a number for each iteration performed. `mean_shift_norm`
        and `update_norm` are those of the last iteration. `result` is the `FitResult` itself.
    """
    trace = result.trace
    status = FitStatus(int(result.status))
    distances = np.linalg.norm(trace.peak_offset, axis=-1).sum(-1)
    measures = ("mean_shift", "update", "movement", "likelihood")
    course = {name: np.asarray(getattr(trace, name)) for name in measures}
    sides = [side for side in params.windows if side]
    windows = []
    for k, side in enumerate(sides):
        entry: dict[str, Any] = {
            "window": side,
            "view": int(trace.view[k]),
            "peak_offsets": trace.peak_from_centre[k],
        }
        shown = max(int(np.count_nonzero(trace.visible[k])), 1)
        for p, name in enumerate(("rigid", "nonrigid")):
            done = trace.performed[k, p]
            entry[name] = {what: numbers[k, p][done] for what, numbers in course.items()}
            entry[name]["peak_distance"] = distances[k, p][done] / shown
        windows.append(entry)
    last = [entry["nonrigid"] for entry in windows if len(entry["nonrigid"]["update"])][-1]
    return {
        "converged": status == FitStatus.CONVERGED,
        "status": status,
        "message": result.message,
        "success": bool(result.success),
        "confidence": None if result.confidence is None else float(result.confidence),
        "landmark_confidence": result.landmark_confidence,
        "parts": result.parts,
        "iterations": int(trace.performed.sum()),
        "mean_shift_norm": float(last["mean_shift"][-1]),
        "update_norm": float(last["update"][-1]),
        "likelihood": float(result.likelihood),
        "landmark_likelihood": result.landmark_likelihood,
        "visible": result.visible,
        "scale": float(result.pose.scale),
        "rotation": np.asarray(result.pose.rotation),
        "translation": result.pose.translation,
        "shape": result.shape,
        "landmarks3d": result.landmarks3d,
        "windows": windows,
        "result": result,
    }
