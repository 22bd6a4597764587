"""Annotated images: which landmarks the faces in them have, from files of three formats."""

from jclnf.annotations._box_tables import BoxTable, FrameBoxTable
from jclnf.annotations._face import AnnotatedFace, split_by_identity
from jclnf.annotations._fitted import NO_FACE, face_columns, face_values
from jclnf.annotations._pts import pts_text
from jclnf.annotations._read import read_annotations

__all__ = [
    "NO_FACE",
    "AnnotatedFace",
    "BoxTable",
    "FrameBoxTable",
    "face_columns",
    "face_values",
    "pts_text",
    "read_annotations",
    "split_by_identity",
]
