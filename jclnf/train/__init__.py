"""Training: models from annotated images, models trained further, and settings tuned.

Use `tune` for a camera or a scheme of your own with a few hundred faces, `fine_tune` to train the
bundled model's experts further, `train_model` for a model from nothing; then `with_confidence`, so
that the model knows how far its fits are to be trusted. Images are prepared on the host by NumPy
and OpenCV; JAX computes on all of its devices.
"""

from jclnf.train._confidence import CONFIDENCE_CONFIG, adapt_confidence, learn_confidence
from jclnf.train._curves import draw_training_curves, write_curves
from jclnf.train._end_to_end import averaged, distance, train_end_to_end
from jclnf.train._examples import BoxExamples
from jclnf.train._faces import MIRROR_68, Faces, cut_out
from jclnf.train._loop import History, Progress, TrainConfig
from jclnf.train._pipeline import (
    PipelineConfig,
    fine_tune,
    fine_tune_config,
    train_model,
    with_confidence,
)
from jclnf.train._readout import learn_readout
from jclnf.train._run_directory import RunDirectory
from jclnf.train._shape_model import ShapeModel, learn_shape_model
from jclnf.train._tune import TUNE_CONFIG, TuneResult, tune
from jclnf.train._uncertainty import calibrate_uncertainty
from jclnf.train._validation import fit_errors, one_of_each, summary

__all__ = [
    "CONFIDENCE_CONFIG",
    "MIRROR_68",
    "TUNE_CONFIG",
    "BoxExamples",
    "Faces",
    "History",
    "PipelineConfig",
    "Progress",
    "RunDirectory",
    "ShapeModel",
    "TrainConfig",
    "TuneResult",
    "adapt_confidence",
    "averaged",
    "calibrate_uncertainty",
    "cut_out",
    "distance",
    "draw_training_curves",
    "fine_tune",
    "fine_tune_config",
    "fit_errors",
    "learn_confidence",
    "learn_readout",
    "learn_shape_model",
    "one_of_each",
    "summary",
    "train_end_to_end",
    "train_model",
    "tune",
    "with_confidence",
    "write_curves",
]
