"""Annotated images: which landmarks the faces in them have, from files of three formats."""

from jclnf.annotations._box_tables import BoxTable, FrameBoxTable
from jclnf.annotations._face import AnnotatedFace, split_by_identity
from jclnf.annotations._pts import pts_text
from jclnf.annotations._read import read_annotations

__all__ = [
    "AnnotatedFace",
    "BoxTable",
    "FrameBoxTable",
    "pts_text",
    "read_annotations",
    "split_by_identity",
]
