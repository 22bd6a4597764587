"""Errors of a model on annotated faces."""

from jclnf.evaluation._curves import draw_curves
from jclnf.evaluation._evaluate import CHUNK, NOT_READ, Evaluation, evaluate, start_box
from jclnf.evaluation._metrics import MEASURES, OUTER_EYES, Statistics, Summary, face_errors

__all__ = [
    "CHUNK",
    "MEASURES",
    "NOT_READ",
    "OUTER_EYES",
    "Evaluation",
    "Statistics",
    "Summary",
    "draw_curves",
    "evaluate",
    "face_errors",
    "start_box",
]
