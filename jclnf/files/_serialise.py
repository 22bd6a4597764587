"""jclnf's own model files: safetensors with a versioned description in the header.

A file holds a tensor for each array (`pdm.mean`, `experts.weights`, ...) and, under the metadata
key `jclnf`, a JSON text with the format's version, the kind of experts and everything static.
Nothing is pickled: loading a file runs no code from it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jclnf.errors import JclnfError, ModelFileError, OutputError
from jclnf.experts import CCNF, CEN, SVR, PatchExperts, TrunkExperts
from jclnf.fitting import (
    LAYERS,
    Confidence,
    EarlyTermination,
    LearnedStart,
    Model,
    Part,
    Uncertainty,
    Validator,
    View,
)
from jclnf.geometry import PDM
from jclnf.outputs import replacing
from jclnf.params import Arithmetic, FitParams

FORMAT_VERSION = 2
EXPERT_KINDS: dict[str, type[PatchExperts]] = {
    "ccnf": CCNF,
    "svr": SVR,
    "cen": CEN,
    "trunk": TrunkExperts,
}
"""Kinds of experts that can be stored, by the name that stands for them in a file."""

_OPTIONAL: dict[str, Any] = {
    "start": LearnedStart,
    "readout": PDM,
    "uncertainty": Uncertainty,
    "confidence": Confidence,
    "early_termination": EarlyTermination,
}
"""What a model may hold besides, by the names of its fields."""
_NEWER = ("uncertainty", "derivatives")
"""Fields that files of an earlier jclnf may lack; they have defaults."""

DEFAULT_MODEL = "default.safetensors"


def save_model(model: Model, path: str | Path) -> None:
    """Write a model to a file.

    Raises:
        ModelFileError: experts of a kind that is not stored (prepared ones, say).
        OutputError: it cannot be written there.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelFileError(path, "a model's file name ends in .safetensors")
    tensors: dict[str, np.ndarray] = {}
    header: dict[str, Any] = {"version": FORMAT_VERSION, **_describe(model, path, "", tensors)}
    header["parts"] = [
        {
            "main_index": part.main_index,
            "part_index": part.part_index,
            **_describe(part.model, path, f"parts.{i}.", tensors),
        }
        for i, part in enumerate(model.parts)
    ]
    if model.validator is not None:
        header["validator"] = _describe_validator(model.validator, tensors)
    for name in _OPTIONAL:
        if (held := getattr(model, name)) is not None:
            header[name] = _take_apart(held, name, tensors)
    try:
        with replacing(path) as part:
            save_file(tensors, str(part), metadata={"jclnf": json.dumps(header)})
    except SafetensorError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from None


def _describe(
    model: Model, path: str | Path, prefix: str, tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Put a model's arrays into `tensors`, but those of its parts, its validator, its start, its
    calibration, its confidence and its rule for early termination; return the rest of it."""
    kinds = [name for name, kind in EXPERT_KINDS.items() if type(model.experts) is kind]
    if not kinds:
        raise ModelFileError(
            path,
            f"experts of the kind {type(model.experts).__name__} cannot be stored: save the "
            "model before it is prepared",
        )
    return {
        "name": model.name,
        "kind": kinds[0],
        "pdm": _take_apart(model.pdm, f"{prefix}pdm", tensors),
        "experts": _take_apart(model.experts, f"{prefix}experts", tensors),
        "defaults": _take_apart(model.defaults, f"{prefix}defaults", tensors),
    }


def _describe_validator(validator: Validator, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    tensors["validator.centres"] = np.array(validator.centres)
    stacked = isinstance(validator.views, View)
    views = [validator.views] if isinstance(validator.views, View) else validator.views
    prefixes = [f"validator.{i}" for i in range(len(views))]
    described = [_take_apart(v, p, tensors) for v, p in zip(views, prefixes, strict=True)]
    return {"stacked": stacked, "views": described}


def load_model(path: str | Path | None = None) -> Model:
    """Load a model.

    Args:
        path: a file written by `save_model`; or OpenFace's own model, as its main file or folder
            (see `jclnf.load_openface`), or by its name if it was installed with `jclnf models
            install openface` (`clnf_general`, say); or nothing, for the model that is bundled with
            jclnf.

    Raises:
        ModelFileError: no such file, or one that is not such a model.
    """
    if path is None:
        return _load(_bundled())
    path = find_model(path)
    if path.suffix == ".safetensors":
        return _load(path)
    from jclnf.openface import load_openface

    return load_openface(path)


def find_model(name: str | Path) -> Path:
    """A path, or where the model of that name is installed if there is nothing at that path."""
    from jclnf.openface import models_folder

    path = Path(name)
    if not path.exists() and len(path.parts) == 1:
        for candidate in (f"main_{name}.txt", f"{name}.txt"):
            if (models_folder() / candidate).is_file():
                return models_folder() / candidate
    return path


def bundled_models() -> list[Path]:
    """The files of the models that come with jclnf."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel the folder lies inside the package, in a checkout beside it.
    folders = (package / "models", package.parent / "models")
    return sorted(path for folder in folders for path in folder.glob("*.safetensors"))


def _bundled() -> Path:
    for path in bundled_models():
        if path.name == DEFAULT_MODEL:
            return path
    raise ModelFileError(
        DEFAULT_MODEL,
        "this version of jclnf comes without a model of its own: give the path of one, "
        "such as OpenFace's main_clnf_general.txt",
    )


def _load(path: Path) -> Model:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelFileError(path, "there is no such file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(path, f"not a readable safetensors file ({error})") from None
    try:
        header = json.loads(metadata["jclnf"])
        version = header["version"]
    except (KeyError, TypeError, ValueError):
        raise ModelFileError(path, "a safetensors file, but not one of jclnf's models") from None
    if version != FORMAT_VERSION:
        raise ModelFileError(
            path,
            f"format version {version}, but this jclnf reads {FORMAT_VERSION}: "
            "update jclnf, or train the model again",
        )
    for name, tensor in tensors.items():
        if name.endswith(".eigenvalues") and not (tensor > 0).all():
            raise ModelFileError(path, f"the tensor {name} holds variances that are not positive")
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise ModelFileError(path, f"the tensor {name} holds numbers that are not finite")
    try:
        return _assemble(header, tensors)
    except JclnfError as error:
        raise ModelFileError(path, str(error)) from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelFileError(path, f"its description does not fit its tensors ({error})") from None


def _assemble(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Model:
    parts = tuple(
        Part(
            _model(part, f"parts.{i}.", tensors),
            tuple(map(int, part["main_index"])),
            tuple(map(int, part["part_index"])),
        )
        for i, part in enumerate(header.get("parts", []))
    )
    validator = None
    if "validator" in header:
        views = [
            _put_together(View, f"validator.{i}", static, tensors)
            for i, static in enumerate(header["validator"]["views"])
        ]
        stacked = header["validator"]["stacked"]
        centres = jnp.asarray(tensors["validator.centres"])
        validator = Validator(centres, views[0] if stacked else tuple(views))
    optional = {
        name: _put_together(kind, name, header[name], tensors)
        for name, kind in _OPTIONAL.items()
        if name in header
    }
    model = _model(header, "", tensors)
    return dataclasses.replace(
        model,
        parts=parts,
        validator=validator,
        **optional,
    )


def _model(header: dict[str, Any], prefix: str, tensors: dict[str, np.ndarray]) -> Model:
    """The inverse of `_describe`."""
    experts = EXPERT_KINDS[header["kind"]]
    return Model(
        pdm=_put_together(PDM, f"{prefix}pdm", header["pdm"], tensors),
        experts=_put_together(experts, f"{prefix}experts", header["experts"], tensors),
        defaults=_put_together(FitParams, f"{prefix}defaults", header["defaults"], tensors),
        name=str(header["name"]),
    )


def _take_apart(module: eqx.Module, prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Put a module's arrays into `tensors`; return what is static in it."""
    static: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        name = f"{prefix}.{field.name}"
        if isinstance(value, Arithmetic):
            static[field.name] = dataclasses.asdict(value)
        elif field.metadata.get("static", False):
            static[field.name] = value
        elif field.name == "layers":
            static["layers"] = [
                {"kind": type(layer).__name__, **_take_apart(layer, f"{name}.{i}", tensors)}
                for i, layer in enumerate(value)
            ]
        elif isinstance(value, dict):
            static[field.name] = sorted(value)
            tensors.update({f"{name}.{key}": np.array(item) for key, item in value.items()})
        else:
            tensors[name] = np.array(value)
    return static


def _put_together(
    kind: Any, prefix: str, static: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Any:
    """The inverse of `_take_apart`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = f"{prefix}.{field.name}"
        if field.name in _NEWER and field.name not in static:
            continue
        if field.name == "arithmetic":
            values[field.name] = Arithmetic(**static[field.name])
        elif field.metadata.get("static", False):
            value = static[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.name == "layers":
            values["layers"] = tuple(
                _put_together(LAYERS[layer["kind"]], f"{name}.{i}", layer, tensors)
                for i, layer in enumerate(static["layers"])
            )
        elif field.name in static:
            values[field.name] = {
                key: jnp.asarray(tensors[f"{name}.{key}"]) for key in static[field.name]
            }
        else:
            values[field.name] = jnp.asarray(tensors[name])
    return kind(**values)
