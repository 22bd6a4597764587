"""jclnf's own model files: safetensors with a versioned description in the header.

A file holds a tensor for each array, named by its path in the model (`pdm.mean`,
`parts.0.model.experts.weights`), and, under the metadata key `jclnf`, a JSON text with the format's
version and the model's description: what is static, and where the tensors belong. In it

- `{"class": name, "fields": {...}}` is a module, one of `CLASSES`;
- `{"tensor": name}` is an array, `{"items": [[key, ...], ...]}` a dict, a list a tuple;
- anything else stands for itself.

Fields that are missing have their defaults, so that classes may get new ones. Nothing is pickled:
loading a file runs no code from it.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jclnf.errors import JclnfError, ModelFileError, near_file
from jclnf.experts import CCNF, CEN, SVR, MapNetwork, PyramidExperts, TrunkExperts
from jclnf.files._find import DEFAULT_MODEL, find_model
from jclnf.files._version2 import description
from jclnf.fitting import Confidence, LearnedStart, Model, Part, Uncertainty
from jclnf.geometry import PDM
from jclnf.openface import LAYERS, EarlyTermination, Validator, View, load_openface
from jclnf.outputs import replacing
from jclnf.params import Arithmetic, FitParams, to_device
from jclnf.runtime import check_process

FORMAT_VERSION = 3
CLASSES: dict[str, Any] = {
    "Arithmetic": Arithmetic,
    "CCNF": CCNF,
    "CEN": CEN,
    "Confidence": Confidence,
    "EarlyTermination": EarlyTermination,
    "FitParams": FitParams,
    "LearnedStart": LearnedStart,
    "MapNetwork": MapNetwork,
    "Model": Model,
    "PDM": PDM,
    "Part": Part,
    "PyramidExperts": PyramidExperts,
    "SVR": SVR,
    "TrunkExperts": TrunkExperts,
    "Uncertainty": Uncertainty,
    "Validator": Validator,
    "View": View,
    **LAYERS,
}
"""The classes that can be stored, by their names in files, which stay when a class is renamed."""

_UNFIT = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, which `load_model` reads; whole or not at all.

    Raises:
        ModelFileError: the model holds what is not stored.
        OutputError: it cannot be written there.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelFileError(path, "a model's file name ends in .safetensors")
    tensors: dict[str, np.ndarray] = {}
    try:
        header = {"version": FORMAT_VERSION, "model": _describe(model, (), tensors)}
        with replacing(path) as part:
            save_file(tensors, str(part), metadata={"jclnf": json.dumps(header)})
    except (SafetensorError, TypeError) as error:
        raise ModelFileError(path, f"cannot be written ({error})") from None


def load_model(
    source: str | os.PathLike[str] | None = None, *, parts: bool = False, validator: bool = False
) -> Model:
    """Load a model; it is ready to be used.

    Args:
        source: the name of a bundled model ("default") or of one that was installed with `jclnf
            models install openface` ("clnf_general", say); a file written by `save_model`;
            OpenFace's main file or model folder (see `jclnf.load_openface`); or nothing, for the
            bundled default.
        parts: with the models of parts that an OpenFace model names. A file written by `save_model`
            has them if it was saved with them.
        validator: the same for OpenFace's validator.

    Raises:
        ModelFileError: no such model, a damaged one, or one without the parts or the validator that
            are asked for.
    """
    check_process()
    path = find_model(DEFAULT_MODEL if source is None else source)
    if path.suffix != ".safetensors":
        return load_openface(path, parts=parts, validator=validator)
    model = _load(path)
    if parts and not model.parts:
        raise ModelFileError(path, "the model has no parts: give one of OpenFace's")
    if validator and not isinstance(model.confidence, Validator):
        raise ModelFileError(path, "the model has no validator: give one of OpenFace's")
    return model


def _describe(value: Any, at: tuple[Any, ...], tensors: dict[str, np.ndarray]) -> Any:
    """A value as in the header of a file; its arrays are put into `tensors`."""
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        name = ".".join(map(str, at))
        tensors[name] = np.array(value, order="C")
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[k, _describe(v, (*at, k), tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return [_describe(item, (*at, i), tensors) for i, item in enumerate(value)]
    if not dataclasses.is_dataclass(value):
        return value
    kind = next((name for name, stored in CLASSES.items() if type(value) is stored), None)
    if kind is None:
        problem = f"{type(value).__name__} is not stored: save the model before it is prepared"
        raise TypeError(problem)
    names = [field.name for field in dataclasses.fields(value)]
    fields = {name: _describe(getattr(value, name), (*at, name), tensors) for name in names}
    return {"class": kind, "fields": fields}


def _load(path: Path) -> Model:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise ModelFileError(path, f"no such file{near_file(path)}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ModelFileError(path, f"not a readable safetensors file ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise ModelFileError(path, f"the tensor {name} holds numbers that are not finite")
    try:
        header = json.loads(metadata["jclnf"])
        version = header["version"]
    except _UNFIT:
        raise ModelFileError(path, "a safetensors file, but not one of jclnf's models") from None
    if version not in (2, FORMAT_VERSION):
        problem = f"format version {version}, but this jclnf reads 2 and {FORMAT_VERSION}"
        raise ModelFileError(path, f"{problem}: update jclnf")
    try:
        node = header["model"] if version == FORMAT_VERSION else description(header, tensors)
        model = _build(node, path, "", tensors)
    except ModelFileError:
        raise
    except _UNFIT as error:
        raise ModelFileError(path, f"its description does not fit its tensors ({error})") from None
    if not isinstance(model, Model):
        raise ModelFileError(path, "its description is not one of a model")
    return model


def _build(node: Any, path: Path, at: str, tensors: dict[str, np.ndarray]) -> Any:
    """The inverse of `_describe`."""
    if isinstance(node, list):
        return tuple(_build(item, path, f"{at}.{i}", tensors) for i, item in enumerate(node))
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return to_device(tensors[node["tensor"]])
    if "items" in node:
        return {key: _build(item, path, f"{at}.{key}", tensors) for key, item in node["items"]}
    fields = node["fields"].items()
    values = {name: _build(value, path, f"{at}.{name}", tensors) for name, value in fields}
    try:
        return CLASSES[node["class"]](**values)
    except JclnfError as error:
        raise ModelFileError(path, f"{at[1:]}: {error}" if at else str(error)) from None
