"""Model files of format version 2, which are read and no longer written."""

import dataclasses
from typing import Any

import numpy as np

from jclnf.experts import CCNF, CEN, SVR, TrunkExperts
from jclnf.fitting import Confidence, LearnedStart, Uncertainty
from jclnf.geometry import PDM
from jclnf.openface import LAYERS, ROTATIONS, EarlyTermination, View
from jclnf.params import FitParams

_EXPERTS = {"ccnf": CCNF, "svr": SVR, "cen": CEN, "trunk": TrunkExperts}
_OPTIONAL = {
    "start": LearnedStart,
    "readout": PDM,
    "uncertainty": Uncertainty,
    "confidence": Confidence,
    "early_termination": EarlyTermination,
}


def description(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The header of a file of version 2 as the description of a model in version 3."""
    model = _model(header, "", tensors)
    fields = model["fields"]
    for name, kind in _OPTIONAL.items():
        if name in header:
            fields[name] = _module(kind, header[name], name, tensors)
    fields["parts"] = [
        _node(
            "Part",
            model=_model(part, f"parts.{i}.", tensors),
            main_index=part["main_index"],
            part_index=part["part_index"],
        )
        for i, part in enumerate(header.get("parts", []))
    ]
    if "start" not in header:
        # Programs tried these where there was no learned start.
        tensors["rotations"] = np.array(ROTATIONS, np.float32)
        fields["defaults"]["fields"]["rotations"] = {"tensor": "rotations"}
    if "validator" in header:
        views = [
            _module(View, view, f"validator.{i}", tensors)
            for i, view in enumerate(header["validator"]["views"])
        ]
        fields["confidence"] = _node(
            "Validator",
            centres={"tensor": "validator.centres"},
            views=views[0] if header["validator"]["stacked"] else views,
        )
    return model


def _model(header: dict[str, Any], prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    kinds = {"pdm": PDM, "experts": _EXPERTS[header["kind"]], "defaults": FitParams}
    held = {
        name: _module(kind, header[name], f"{prefix}{name}", tensors)
        for name, kind in kinds.items()
    }
    return _node("Model", name=header["name"], **held)


def _module(
    kind: Any, static: dict[str, Any], prefix: str, tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """A module: version 2 has its static fields and the keys of its dicts alone."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = f"{prefix}.{field.name}"
        if name in tensors:
            values[field.name] = {"tensor": name}
        elif field.name not in static:
            continue
        elif field.name == "arithmetic":
            values["arithmetic"] = _node("Arithmetic", **static["arithmetic"])
        elif field.name == "layers":
            values["layers"] = [
                _module(LAYERS[layer["kind"]], layer, f"{name}.{i}", tensors)
                for i, layer in enumerate(static["layers"])
            ]
        elif field.metadata.get("static", False):
            values[field.name] = static[field.name]
        else:
            keys = static[field.name]
            values[field.name] = {"items": [[k, {"tensor": f"{name}.{k}"}] for k in keys]}
    return _node(kind.__name__, **values)


def _node(kind: str, **fields: Any) -> dict[str, Any]:
    return {"class": kind, "fields": fields}
