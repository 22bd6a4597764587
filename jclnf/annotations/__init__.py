"""Annotated photographs: which landmarks the faces in them have, from files of three formats."""

from jclnf.annotations.face import AnnotatedFace, split_by_identity, tight_box
from jclnf.annotations.read import read_annotations

__all__ = ["AnnotatedFace", "read_annotations", "split_by_identity", "tight_box"]
