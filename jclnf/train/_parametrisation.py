"""The learned part of a model and its settings: leaves chosen by name, freed of their bounds."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jclnf.errors import ParamsError
from jclnf.experts import PreparedCCNF
from jclnf.fitting import Model

SETTINGS = ("params.regularisation", "params.kernel_width", "params.weight_factor")
WEIGHTS = "model.experts.confidence"
GROUPS: dict[str, tuple[str, ...]] = {
    "params": (*SETTINGS, WEIGHTS),
    "experts": ("model.experts",),
    "start": ("model.start",),
    "pdm": ("model.pdm",),
    "all": (*SETTINGS, "model.experts", "model.pdm"),
}
"""Names that stand for several leaves."""
_FIXED = ("model.experts.centres", "model.experts.components")
"""Left out of the groups: the choice of views has no derivative, and the field's components have a
structure that numbers of their own would break."""
_POSITIVE = (
    "regularisation",
    "kernel_width",
    "weight_factor",
    "confidence",
    "softness",
    "eigenvalues",
)
_FASTER = 20.0
"""How much larger the steps of settings are than those of weights."""
Bounds = Mapping[str, tuple[float, float]]
Schedule = Callable[[Any], Any]


class Parametrisation(eqx.Module):
    """Chosen leaves of a model and its default settings, and what they are learned as.

    A positive leaf is learned as its logarithm (where it is 0 it stays so), one with bounds as the
    logit of its place between them, any other in units of its root mean square (if `relative`): so
    one learning rate does for all.

    Args:
        model: as it is before.
        what: a name of `GROUPS`, or dotted names of leaves or of what contains them, such as
            `"params.kernel_width"` or `"model.experts"`.
        bounds: the least and the largest value of leaves, by their names.
        relative: whether leaves without bounds are learned in units of their size.

    Raises:
        ParamsError: a name that nothing has, a value outside its bounds, or experts that were
            prepared.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    """Of the chosen leaves."""
    _bounds: tuple[tuple[str, float, float], ...] = eqx.field(static=True)
    _relative: bool = eqx.field(static=True)
    _tree: dict[str, Any]

    def __init__(
        self,
        model: Model,
        what: str | Sequence[str],
        bounds: Bounds | None = None,
        *,
        relative: bool = True,
    ) -> None:
        if isinstance(model.experts, PreparedCCNF):
            raise ParamsError("the model was prepared: tune it as it was loaded")
        self._tree = {"params": model.defaults, "model": model}
        known = _leaves(self._tree)
        bounds = {} if bounds is None else bounds
        names: list[str] = []
        for wanted in [what] if isinstance(what, str) else what:
            group = GROUPS.get(wanted)
            found = [
                name
                for name in known
                if any(_within(name, prefix) for prefix in group or (wanted,))
                and not (group and any(_within(name, fixed) for fixed in _FIXED))
            ]
            if wanted == "experts":
                found = [name for name in found if name != WEIGHTS]
            if not found:
                raise ParamsError(f"nothing is called {wanted!r}; there are {', '.join(known)}")
            names += [name for name in found if name not in names]
        for name, (low, high) in bounds.items():
            if name not in names:
                raise ParamsError(f"bounds for {name!r}, which is not tuned")
            values = np.asarray(known[name])
            if not low < high or (values <= low).any() or (values >= high).any():
                raise ParamsError(f"{name} begins outside its bounds {low:g} to {high:g}")
        self.names = tuple(names)
        self._bounds = tuple((name, *limits) for name, limits in bounds.items())
        self._relative = relative

    def free(self) -> dict[str, Array]:
        """The chosen leaves as numbers without bounds, by their names."""
        known = _leaves(self._tree)
        return {name: self._free(name, known[name]) for name in self.names}

    def model(self, free: Mapping[str, Any]) -> Model:
        """The model with its chosen leaves as these numbers say."""

        def one(path: Any, leaf: Any) -> Any:
            name = _name(path)
            return self._bound(name, leaf, free[name]) if name in self.names else leaf

        tree = jax.tree_util.tree_map_with_path(one, self._tree)
        changed: Model = dataclasses.replace(tree["model"], defaults=tree["params"])
        return changed

    def optimiser(self, learned: Iterable[str], rate: Schedule) -> optax.GradientTransformation:
        """Adam for arrays of these names: those learned as a logarithm or a logit take larger
        steps."""
        faster = optax.adam(lambda step: _FASTER * rate(step))
        labels = {
            name: "faster" if self._limits(name) or _positive(name) else "plain" for name in learned
        }
        return optax.partition({"faster": faster, "plain": optax.adam(rate)}, labels)

    def _free(self, name: str, values: Array) -> Array:
        if limits := self._limits(name):
            low, high = limits
            return jax.scipy.special.logit((values - low) / (high - low))
        if _positive(name):
            return jnp.log(jnp.where(values > 0, values, 1.0))
        return values / self._size(values)

    def _bound(self, name: str, values: Array, free: Any) -> Array:
        if limits := self._limits(name):
            low, high = limits
            return low + (high - low) * jax.nn.sigmoid(free)
        if _positive(name):
            return jnp.where(values > 0, jnp.exp(free), values)
        return free * self._size(values)

    def _limits(self, name: str) -> tuple[float, float] | None:
        return next(((low, high) for known, low, high in self._bounds if known == name), None)

    def _size(self, values: Array) -> Any:
        """Root mean square, 1 for zeros."""
        if not self._relative:
            return 1.0
        size = jnp.sqrt(jnp.mean(values**2))
        return jnp.where(size > 0, size, 1.0)


def _positive(name: str) -> bool:
    return name.rpartition(".")[2] in _POSITIVE


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _leaves(tree: Any) -> dict[str, Array]:
    """All floating-point arrays by their names, but the settings that the model comes with."""
    named = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {
        name: leaf
        for name, leaf in named.items()
        if eqx.is_inexact_array(leaf) and not _within(name, "model.defaults")
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
