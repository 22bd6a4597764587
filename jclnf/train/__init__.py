"""Training: the shape model from 2D annotations, the patch experts from images, the whole fit."""

from jclnf.train._loop import Course
from jclnf.train._tune import Tuned, tune

__all__ = ["Course", "Tuned", "tune"]
