"""The parts that OpenFace's main files name, each with a model of its own.

A line `LandmarkDetector_part file name m p m p ...` says that landmark `m` of the face is landmark
`p` of the part, for each pair. OpenFace's settings for the parts are not in its files.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from jclnf.errors import ModelFileError
from jclnf.fitting import Model, Part
from jclnf.openface._text import Entry
from jclnf.params import FitParams


class _Settings(NamedTuple):
    """Settings of a part: windows by scale, and what is the same at every scale."""

    windows: tuple[int, ...]
    regularisation: float
    kernel_width: float
    weight_factor: float


_EYE = _Settings((3, 5, 9), 0.5, 1.0, 0.0)
_SETTINGS = {
    "inner": _Settings((9,), 2.5, 1.75, 2.5),
    "left_eye_28": _EYE,
    "right_eye_28": _EYE,
}
_ITERATIONS = 5


def read_parts(
    entries: Sequence[Entry], landmarks: int, load: Callable[[Entry], Model]
) -> tuple[Part, ...]:
    """The parts that these lines name, with OpenFace's settings.

    Args:
        entries: the lines, with what follows the file's name as `arguments`.
        landmarks: number of landmarks of the face.
        load: what loads the model of a part.

    Raises:
        ModelFileError: a line without a known name or with pairs that are not of landmarks, and
            whatever `load` raises; two parts of the same name.
    """
    parts: list[Part] = []
    for entry in entries:
        name, main_index, part_index = _mapping(entry, landmarks)
        if name in (part.name for part in parts):
            raise ModelFileError(entry.list_path, f"line {entry.line}: a second part {name}")
        model = load(entry)
        settings = _settings(entry, name, len(model.scalings))
        model = dataclasses.replace(model, name=name, defaults=settings)
        try:
            parts.append(Part(model, main_index, part_index))
        except ModelFileError as error:
            raise ModelFileError(entry.list_path, f"line {entry.line}: {error}") from None
    return tuple(parts)


def _mapping(entry: Entry, landmarks: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Name of a part, and the landmarks of the face and of the part that are the same."""
    where = f"line {entry.line}: "
    if not entry.arguments or entry.arguments[0] not in _SETTINGS:
        name = repr(entry.arguments[0][:40]) if entry.arguments else "without a name"
        known = ", ".join(_SETTINGS)
        problem = f"{where}a part {name}; there are settings for {known}"
        raise ModelFileError(entry.list_path, problem)
    name, *words = entry.arguments
    # Python reads other scripts' digits too, and refuses thousands of them.
    plain = all(word.isascii() and word.isdigit() and len(word) < 6 for word in words)
    if not words or len(words) % 2 or not plain:
        problem = f"{where}after the part's name, pairs of whole numbers are expected"
        raise ModelFileError(entry.list_path, problem)
    numbers = tuple(int(word) for word in words)
    if max(numbers[::2]) >= landmarks:
        problem = f"{where}landmark {max(numbers[::2])} of a face that has {landmarks}"
        raise ModelFileError(entry.list_path, problem)
    return name, numbers[::2], numbers[1::2]


def _settings(entry: Entry, name: str, scales: int) -> FitParams:
    settings = _SETTINGS[name]
    if scales > len(settings.windows):
        problem = f"the part {name} has {scales} scales, more than {len(settings.windows)}"
        raise ModelFileError(entry.path, problem)
    return FitParams(
        regularisation=jnp.full(scales, settings.regularisation, jnp.float32),
        kernel_width=jnp.full(scales, settings.kernel_width, jnp.float32),
        weight_factor=jnp.full(scales, settings.weight_factor, jnp.float32),
        windows=settings.windows[:scales],
        iterations=_ITERATIONS,
    )
