"""The errors that jclnf raises on bad input: each names the input and the remedy."""

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args, get_origin

_MOST_NAMES = 10_000
"""Files of a folder among which one of a similar name is looked for."""

_MOST_NEAR = 10
"""Similar names of which the first that suits is taken."""


class JclnfError(ValueError):
    """Base of all errors that jclnf raises about its input."""


class ModelFileError(JclnfError):
    """A model file is missing, truncated, of another kind, or inconsistent.

    The message names the file and, where the trouble has a place, the byte offset or line.
    """

    def __init__(self, path: object, problem: str, *, offset: int | None = None) -> None:
        where = f"{path}" if offset is None else f"{path}, byte {offset}"
        super().__init__(f"{where}: {problem}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Pools of processes hand errors on pickled, and hang where that fails.
        return ModelFileError.__new__, (ModelFileError, *self.args)


class ImageError(JclnfError):
    """An image cannot be read, or is not one that a face can be fitted in."""


class AnnotationError(JclnfError):
    """Annotated landmarks cannot be read, contradict each other, or name a missing image.

    The message names the file and, where the trouble has a place, the line.
    """


class VideoError(JclnfError):
    """A video cannot be read, or its results cannot be resumed."""


class BoxError(JclnfError):
    """A face box is empty, not finite, too large, or outside its image."""


class DetectorError(JclnfError):
    """There is no such face detector, or what one returned are no boxes."""


class ParamsError(JclnfError):
    """Fit settings that contradict each other or the model."""


class OutputError(JclnfError):
    """An output cannot be written: no place, no right to, or another process is writing it."""


class ClusterError(JclnfError):
    """There is no Ray, no Ray cluster at the address, or it failed."""


class InstallError(JclnfError):
    """Model files cannot be installed: no room, no network, or not what they should be."""


class TrainingError(JclnfError):
    """Training cannot begin, or go on: too few faces, a checkpoint of another training."""


def did_you_mean(
    wrong: str, names: Iterable[str], suits: Callable[[str], bool] = lambda _: True
) -> str:
    """`; did you mean NAME?` with the name that is nearest to a wrong one, of those that suit;
    nothing if none is."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wrong.lower(), by_lower, n=_MOST_NEAR, cutoff=0.7)
    found = next((by_lower[name] for name in near if suits(by_lower[name])), None)
    return f"; did you mean {found}?" if found else ""


def near_file(
    path: str | os.PathLike[str],
    suits: Callable[[str], bool] = os.path.exists,
    through: Callable[[str], bool] = os.path.isdir,
) -> str:
    """`; did you mean NAME?` with the file that has the name nearest to that of one that is not
    there; or that there is no such folder; nothing if there is nothing to say.

    Args:
        path: what is not there.
        suits: whether what has a name that is near could have been meant.
        through: the same of a folder, in place of one that the path leads through.
    """
    folder, name = os.path.split(os.fspath(path))
    try:
        there = [other for other in os.listdir(folder or ".") if not other.startswith(".")]
    except (OSError, ValueError):  # ValueError: a NUL in the name
        near = near_file(folder, through, through) if name else ""
        return f"; there is no folder {folder}{near}"

    def could_be(other: str) -> bool:
        return suits(os.path.join(folder, other))

    # In a folder of very many files the search would take seconds.
    return did_you_mean(name, there[:_MOST_NAMES], could_be) if name else ""


def check_fields(module: Any, where: str) -> None:
    """Check a module's fields by their annotations: types, and sizes that go together.

    For `__check_init__`, so that a model is checked however it is loaded; JAX moves an index beyond
    the end of an array to its end without a word. What has no shape and dtype, as the placeholders
    of transformations, passes.

    Raises:
        ModelFileError: names `where` and the field.
    """
    from jaxtyping import jaxtyped  # here, since the command line helps without JAX

    with jaxtyped("context"):
        for field in dataclasses.fields(module):
            value = getattr(module, field.name)
            held = value.items() if get_origin(field.type) is dict else ((None, value),)
            for key, item in held:
                key_type, kind = (None, field.type) if key is None else get_args(field.type)
                if not _is_of(item, kind) or (key is not None and not _is_of(key, key_type)):
                    name = field.name if key is None else f"{field.name}[{key}]"
                    raise ModelFileError(where, f"{name} is {_shown(item)}, not {_named(kind)}")


def is_concrete(value: Any) -> bool:
    """Whether it is an array whose numbers can be looked at."""
    import jax

    return hasattr(value, "__array__") and not isinstance(value, jax.core.Tracer)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as far as that is one that model files hold."""
    if hasattr(kind, "dim_str"):
        arrays = hasattr(value, "shape") and hasattr(value, "dtype")
        return not arrays or isinstance(value, kind.dtype[object, kind.dim_str])
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_is_of(item, kinds[0]) for item in value)
        return (
            isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
        )
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, each) for each in get_args(kind))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind in (int, bool, str):
        return type(value) is kind
    return value is None or not isinstance(kind, type) or isinstance(value, kind)


def _shown(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return repr(value)[:80]


def _named(kind: Any) -> str:
    return getattr(kind, "__name__", "") if hasattr(kind, "dim_str") else str(kind)


def option_of(name: str, default: Any, notes: Sequence[Any]) -> str:
    """The option that a field is, of its default and what it is `Annotated` with."""
    for note in notes:
        name = note.get("name", name) if isinstance(note, dict) else name
    return f"--{'no-' * (default is True)}{name.replace('_', '-')}"
