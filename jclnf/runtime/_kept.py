"""Traces of programs, kept on disk: tracing a fit takes longer than loading what was compiled."""

import dataclasses
import enum
import functools
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_folder: Path | None = None
"""Where they are kept; None until a compilation cache is enabled."""


def keep_traces(folder: Path | None) -> None:
    """Have `kept` functions keep their traces in a folder, or nowhere."""
    global _folder
    _folder = folder


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of jclnf's, to be called while a program is traced that nobody differentiates or
    maps: it is traced once, and exported (`jax.export`); later processes call what was exported.

    What was exported belongs to jclnf's sources, the versions of JAX and Equinox, JAX's settings,
    the shapes of arrays and all that is static in the arguments. Where those have anything of
    another package, and on accelerators, the function itself is called.

    Args:
        function: takes and returns trees of arrays and of static values.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        import equinox as eqx
        import jax

        described = None if _folder is None or not _usable() else _describe(args)
        if _folder is None or described is None:
            return function(*args)
        key = hashlib.sha256(repr((_versions(), function.__qualname__, described)).encode())
        path = _folder / f"{function.__name__}-{key.hexdigest()}.traced"
        arrays, static = eqx.partition(args, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        found = _read(path)
        if found is None:
            returned: list[Any] = []

            def flat(*leaves: Any) -> list[Any]:
                result = function(*eqx.combine(jax.tree.unflatten(structure, leaves), static))
                arrays, rest = eqx.partition(result, eqx.is_array)
                results, places = jax.tree.flatten(arrays)
                returned[:] = jax.tree.unflatten(places, range(len(results))), rest
                return results

            types = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
            try:
                found = jax.export.export(jax.jit(flat))(*types).serialize(), returned
            except NotImplementedError:  # callbacks belong to a process
                return function(*args)
            _write(path, found)
        program, (places, rest) = found
        # What was read and what was just made take the same way, and compute the same.
        results = jax.export.deserialize(bytearray(program)).call(*leaves)
        return eqx.combine(jax.tree.map(lambda at: results[at], places), rest)

    return call


def _usable() -> bool:
    """Whether a trace for the default device, with JAX as it is set, is one for this call."""
    import jax

    config: Any = jax.config
    debugged = config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs
    return jax.default_backend() == "cpu" and config.jax_default_device is None and not debugged


def _describe(node: Any) -> Any:
    """All of a tree that a trace depends on, in plain values; None if that cannot be said."""
    import jax
    import numpy as np

    if isinstance(node, jax.Array | np.ndarray):
        return str(node.dtype), node.shape
    if node is None or isinstance(node, bool | int | float | complex | str | bytes):
        return repr(node)
    named = f"{type(node).__module__}.{type(node).__qualname__}"
    if isinstance(node, enum.Enum) and named.startswith("jclnf."):
        return named, node.name
    children: list[Any]
    if dataclasses.is_dataclass(node) and named.startswith("jclnf."):
        children = [getattr(node, field.name) for field in dataclasses.fields(node)]
    elif isinstance(node, dict):
        children = [item for pair in node.items() for item in pair]
    elif isinstance(node, tuple | list):
        children = list(node)
    else:
        return None
    parts = [_describe(child) for child in children]
    return None if None in parts else (named, *parts)


@functools.cache
def _sources() -> str:
    """A digest of the package's sources."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _versions() -> tuple[Any, ...]:
    """What else a trace depends on."""
    import equinox
    import jax

    config: Any = jax.config
    settings = config.jax_enable_x64, config.jax_default_matmul_precision
    return _sources(), jax.__version__, equinox.__version__, settings


def _read(path: Path) -> Any:
    """What was written there; None if nothing was, or nothing whole, which is removed."""
    try:
        return pickle.loads(path.read_bytes())
    except OSError:
        return None
    except Exception:  # a damaged pickle raises whatever its bytes say
        with suppress(OSError):
            path.unlink()
        return None


def _write(path: Path, found: Any) -> None:
    """Put in place whole, or not at all: it can be made anew."""
    with suppress(OSError):
        descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with open(descriptor, "wb") as file:
                pickle.dump(found, file)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
