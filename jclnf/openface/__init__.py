"""Readers of OpenFace 2.2's model files."""

from jclnf.openface.model import load_openface

__all__ = ["load_openface"]
