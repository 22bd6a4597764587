"""Convolutional experts network (CEN) patch experts.

Each expert is a small network that sees one patch at a time. Source: Zadeh, Baltrusaitis, Morency,
"Convolutional experts constrained local model for 3D facial landmark detection" (ICCVW 2017),
section 3.1.

Cost: evaluating an expert of `P` weights at all positions of a window `k` takes `2 P k^2`
floating-point operations, at every second position half of that. Networks of 121, 500, 200, 100
and 1 units (`P` = 180,600) for 68 landmarks and windows 11, 9, 7, 5 make that 6.8 GFLOP a fit, or
3.4. A fit also reads the weights of one view of each scale, 49 MB: that is what limits the small
windows, and what a batch on an accelerator needs in memory for each of its faces. Half-filled
views (profiles) cost as much as full ones, and landmarks that share an expert evaluate it twice:
what is computed must not depend on the view.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jclnf.errors import is_concrete
from jclnf.experts._base import AreaExperts
from jclnf.experts._patches import patch_contrast
from jclnf.params import EXACT, Arithmetic, to_device

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "none": lambda x: x}
"""The functions that a layer may end in."""

LANDMARKS_AT_ONCE = 4
"""Landmarks whose layers are one product on a CPU, see `_map_landmarks`."""


class CEN(AreaExperts):
    """CEN experts by their parameters.

    Experts are shared: that of a landmark seen from the left serves, mirrored, its counterpart
    seen from the right. So the networks lie in a bank of `b` different ones, and `expert_of` says
    which serves a landmark in a view. Scales may differ in the architecture of their networks (in
    layers, their sizes and activations); there is a bank for each.
    """

    weights: dict[str, Float[Array, "_ _ _"]]
    """`(b, o, i)` by `"architecture.layer"`: from `i` inputs to `o` outputs. The first layer's
    inputs are the pixels of a patch row by row, the last layer's output is the response."""
    biases: dict[str, Float[Array, "_ _"]]
    """`(b, o)` by `"architecture.layer"`."""
    expert_of: Int[Array, "s v n"]
    """Index in the bank of the scale's architecture; any, where the landmark is invisible."""
    mirrored: Bool[Array, "s v n"]
    """Whether the expert is to see the area, and to give the response, mirrored in x."""
    centres: Float[Array, "s v 3"]
    visible: Bool[Array, "s v n"]
    confidence: Float[Array, "s v n"]
    scalings: tuple[float, ...] = eqx.field(static=True)
    support: int = eqx.field(static=True)
    architectures: tuple[int, ...] = eqx.field(static=True)
    """The architecture of the networks of each scale, numbered from 0."""
    activations: tuple[str, ...] = eqx.field(static=True)
    """By architecture: each layer's activation (names of `ACTIVATIONS`), separated by spaces."""

    def inconsistency(self) -> str | None:
        """See `PatchExperts.inconsistency`."""
        sizes = []
        for number, names in enumerate(self.activations):
            layers, inputs = names.split(), self.support**2
            if not set(layers) <= set(ACTIVATIONS) or not layers or layers[-1] == "none":
                allowed = ", ".join(ACTIVATIONS)
                return f"activations {names!r}: they are of {allowed}, the last one not none"
            for layer in range(len(layers)):
                key = f"{number}.{layer}"
                if key not in self.weights or key not in self.biases:
                    return f"weights[{key}] or biases[{key}] is missing"
                shape = jnp.shape(self.weights[key])
                sizes += [shape[0]] if layer == 0 else []
                outputs = 1 if layer == len(layers) - 1 else shape[1]
                if shape != (sizes[-1], outputs, inputs):
                    return (
                        f"weights[{key}] has the shape {shape}, not {(sizes[-1], outputs, inputs)}"
                    )
                if jnp.shape(self.biases[key]) != (sizes[-1], outputs):
                    found = jnp.shape(self.biases[key])
                    return f"biases[{key}] has the shape {found}, not {(sizes[-1], outputs)}"
                inputs = outputs
        scales = jnp.shape(self.visible)[0]
        known = set(range(len(sizes)))
        if len(self.architectures) != scales or not set(self.architectures) <= known:
            return (
                f"architectures is {self.architectures}, for {scales} scales and {len(sizes)} banks"
            )
        if is_concrete(self.expert_of):
            for index, number in zip(np.asarray(self.expert_of), self.architectures, strict=True):
                if np.min(index) < 0 or np.max(index) >= sizes[number]:
                    return f"expert_of has no such expert of architecture {number}"
        return None

    @staticmethod
    def create(
        *,
        scalings: tuple[float, ...],
        architectures: tuple[int, ...],
        activations: tuple[str, ...],
        weights: dict[str, Any],
        biases: dict[str, Any],
        expert_of: Any,
        mirrored: Any,
        centres: Any,
        visible: Any,
        confidence: Any,
    ) -> "CEN":
        """Experts from NumPy arrays; arguments are as the fields.

        Raises:
            ModelFileError: shapes that do not go together, layers that do not follow on each
                other, or experts that are not there.
        """
        return CEN(
            weights={key: to_device(array, jnp.float32) for key, array in weights.items()},
            biases={key: to_device(array, jnp.float32) for key, array in biases.items()},
            expert_of=to_device(expert_of, jnp.int32),
            mirrored=to_device(mirrored, bool),
            centres=to_device(centres, jnp.float32),
            visible=to_device(visible, bool),
            confidence=to_device(confidence, jnp.float32),
            scalings=tuple(float(a) for a in scalings),
            support=round(np.shape(weights["0.0"])[-1] ** 0.5),
            architectures=tuple(architectures),
            activations=tuple(activations),
        )

    def responses(
        self,
        areas: Float[Array, "n a a"],
        scale: Int[Array, ""],
        view: Int[Array, ""],
        window: int,
        *,
        arithmetic: Arithmetic = EXACT,
    ) -> Float[Array, "n k k"]:
        """See `AreaExperts.responses`."""
        mirrored = self.mirrored[scale, view][:, None, None]
        areas = jnp.where(mirrored, areas[:, :, ::-1], areas)
        patches, norm = patch_contrast(areas, window)
        patches = patches * norm[:, None]
        if arithmetic.sparse_cen:
            positions, spread = sparse_grid(window)
            # Of an odd side they are every second one by rows as well, and a slice costs nothing.
            evaluated = patches[:, :, 1::2] if window % 2 else patches[:, :, positions]
            response = self._evaluate(evaluated, scale, view)
            response = response @ jnp.asarray(spread, response.dtype)
        else:
            response = self._evaluate(patches, scale, view)
        response = response.reshape(-1, window, window)
        return jnp.where(mirrored, response[:, :, ::-1], response)

    def _evaluate(
        self, patches: Float[Array, "n p j"], scale: Int[Array, ""], view: Int[Array, ""]
    ) -> Float[Array, "n j"]:
        """Each landmark's expert on its `j` patches."""
        # Networks of different sizes cannot be picked by an index: each architecture is a branch.
        branches = [partial(self._run, number) for number in range(len(self.activations))]
        architecture = jnp.array(self.architectures)[scale]
        return lax.switch(architecture, branches, self.expert_of[scale, view], patches)

    def _run(
        self, architecture: int, experts: Int[Array, "n"], patches: Float[Array, "n p j"]
    ) -> Float[Array, "n j"]:
        """The networks `experts` of an architecture."""
        names = self.activations[architecture].split()
        keys = [f"{architecture}.{layer}" for layer in range(len(names))]
        layers = [
            (self.weights[k], self.biases[k], ACTIVATIONS[n])
            for k, n in zip(keys, names, strict=True)
        ]

        def of_landmark(one: tuple[Int[Array, ""], Float[Array, "p j"]]) -> Float[Array, "j"]:
            expert, x = one
            for w, b, activation in layers:
                x = activation(w[expert] @ x + b[expert][:, None])
            return x[0]

        return _map_landmarks(of_landmark, (experts, patches))


def sparse_grid(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Every second position of a window, and how to fill in the others.

    OpenFace counts positions down the columns and evaluates those of an odd number: in a window of
    odd side, one colour of a checkerboard. Any other position takes the mean of those next to it,
    above, below, left and right, that are evaluated.

    Returns:
        The `j` positions that are evaluated, as indices row by row; and a matrix `(j, k*k)` that
        makes a whole map of the responses there.
    """
    y, x = np.divmod(np.arange(window**2), window)
    positions = np.flatnonzero((x * window + y) % 2)
    near = np.abs(y[positions, None] - y) + np.abs(x[positions, None] - x)
    adjacent = near == 1
    # Evaluated positions are a step apart only where the side is even.
    adjacent[:, positions] = False
    share = adjacent / np.maximum(adjacent.sum(axis=0), 1)
    return positions, np.where(near == 0, 1.0, share)


def _map_landmarks(function: Any, batch: Any) -> Any:
    """`jax.vmap(function)(batch)`, in groups on a CPU.

    There a product for all landmarks at once first copies the weights of the whole view: fresh
    memory for them, every time, made it three times slower than groups that fit into the cache.
    """
    if jax.default_backend() == "cpu":
        return lax.map(function, batch, batch_size=LANDMARKS_AT_ONCE)
    return jax.vmap(function)(batch)
