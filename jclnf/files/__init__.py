"""Model files: loading, saving and naming them."""

from jclnf.files._find import DEFAULT_MODEL, bundled_file, bundled_models, find_model
from jclnf.files._serialise import load_model, save_model

__all__ = [
    "DEFAULT_MODEL",
    "bundled_file",
    "bundled_models",
    "find_model",
    "load_model",
    "save_model",
]
