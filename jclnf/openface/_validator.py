"""How far a fit is to be trusted: a small network looks at the face, warped to the mean shape.

The warp is piecewise affine: each pixel of the face in the mean shape's frame lies in a triangle of
landmarks, and is read where the same mixture of the fitted landmarks is. What the network sees
therefore depends on the fit only through the texture: a face when the landmarks are right.
Source: Baltrusaitis, Robinson, Morency, "OpenFace: an open source facial behavior analysis toolkit"
(WACV 2016).
"""

from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from jclnf.errors import ModelFileError, check_fields, is_concrete
from jclnf.fitting import AbstractConfidence, FitResult
from jclnf.geometry import PDM, precise, product, sample_areas
from jclnf.params import to_device

SUCCESS_CONFIDENCE = 0.725
"""A fit of at most this confidence has failed."""


class Layer(eqx.Module):
    """A step of the network, from maps `(c, y, x)` or a vector to maps or a vector."""

    def __check_init__(self) -> None:
        check_fields(self, f"{type(self).__name__} of a validator")

    @abstractmethod
    def __call__(self, maps: Float[Array, "..."]) -> Float[Array, "..."]:
        """The layer's output."""


class Convolution(Layer):
    """`out_k = bias_k + sum_c kernels_kc * in_c`, a correlation where the kernel fits wholly."""

    kernels: Float[Array, "*v k c y x"]
    bias: Float[Array, "*v k"]

    def __call__(self, maps: Float[Array, "c h w"]) -> Float[Array, "k oy ox"]:
        """The layer's output."""
        k, _, y, x = self.kernels.shape
        height, width = maps.shape[1] - y + 1, maps.shape[2] - x + 1
        # As fast as XLA's convolution for one face, and faster for faces of different views, whose
        # kernels differ.
        rows = jnp.stack([maps[:, i : i + height] for i in range(y)], axis=1)
        patches = jnp.stack([rows[..., j : j + width] for j in range(x)], axis=2)
        patches = lax.optimization_barrier(patches.reshape(-1, height * width))
        out = product(self.kernels.reshape(k, -1), patches)
        return out.reshape(k, height, width) + self.bias[:, None, None]


class Dense(Layer):
    """`weights in + bias`; maps are flattened, map after map, row by row."""

    weights: Float[Array, "*v k i"]
    bias: Float[Array, "*v k"]

    def __call__(self, maps: Float[Array, "..."]) -> Float[Array, " k"]:
        """The layer's output."""
        flat = maps.reshape(-1)
        return product(self.weights, flat) + self.bias


class MaxPool(Layer):
    """The largest of every 2 by 2 pixels; the last row and column of odd maps stand alone."""

    def __call__(self, maps: Float[Array, "c h w"]) -> Float[Array, "c y x"]:
        """The layer's output."""
        # Not `lax.reduce_window`, which takes five times as long on a CPU.
        _, height, width = maps.shape
        odd = ((0, 0), (0, height % 2), (0, width % 2))
        maps = jnp.pad(maps, odd, constant_values=-jnp.inf)
        rows = jnp.maximum(maps[:, ::2], maps[:, 1::2])
        return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


class Rectifier(Layer):
    """`max(0, in)`."""

    def __call__(self, maps: Float[Array, "..."]) -> Float[Array, "..."]:
        """The layer's output."""
        return jax.nn.relu(maps)


class Sigmoid(Layer):
    """`1 / (1 + exp(-in))`."""

    def __call__(self, maps: Float[Array, "..."]) -> Float[Array, "..."]:
        """The layer's output."""
        return jax.nn.sigmoid(maps)


LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind for kind in (Convolution, Dense, MaxPool, Rectifier, Sigmoid)
}
"""The kinds of layers by their names."""


class View(eqx.Module):
    """The warp and the network of one view; or of `v` views, each array with a leading axis."""

    vertices: Int[Array, "*v h w 3"]
    """The landmarks at the corners of the triangle that each pixel lies in."""
    mixture: Float[Array, "*v h w 3"]
    """The pixel's place in the triangle: weights of the corners, 1 in all."""
    mask: Bool[Array, "*v h w"]
    """Pixels that belong to the face."""
    mean: Float[Array, "*v h w"]
    """Mean of the normalised pixels over the training faces."""
    deviation: Float[Array, "*v h w"]
    """Divisor of the normalised pixels less their mean; positive."""
    layers: tuple[Layer, ...]
    """The network; its last output is a vector."""

    def __check_init__(self) -> None:
        check_fields(self, "view of a validator")


class Validator(AbstractConfidence):
    """The validators of all views."""

    centres: Float[Array, "v 3"]
    """Head rotation that each view stands for: Euler angles in radians."""
    views: View | tuple[View, ...]
    """All views stacked, if their arrays are of the same shapes; else one after the other."""
    threshold: Float[Array, ""] = eqx.field(
        kw_only=True, default_factory=lambda: jnp.float32(SUCCESS_CONFIDENCE)
    )

    def __check_init__(self) -> None:
        check_fields(self, "validator")
        count = len(self.centres)
        if not isinstance(self.views, View) and len(self.views) != count:
            raise ModelFileError("validator", f"views are {len(self.views)} for {count} centres")
        for view in (self.views,) if isinstance(self.views, View) else self.views:
            stacked = (count,) if isinstance(self.views, View) else ()
            _check_view(view, stacked)

    @staticmethod
    def create(centres: Float[Array, "v 3"], views: Sequence[View]) -> "Validator":
        """The validator of these views."""
        leaves, structures = zip(*(jax.tree.flatten(view) for view in views), strict=True)
        shapes = {tuple((leaf.shape, leaf.dtype) for leaf in one) for one in leaves}
        if len(shapes) > 1 or len(set(structures)) > 1:
            return Validator(centres, tuple(views))
        return Validator(centres, jax.tree.map(lambda *arrays: to_device(np.stack(arrays)), *views))

    def misfit(self, pdm: PDM) -> str | None:
        """See `AbstractConfidence.misfit`."""
        for view in (self.views,) if isinstance(self.views, View) else self.views:
            vertices = view.vertices
            if is_concrete(vertices):
                least, most = np.min(vertices), np.max(vertices)
                if least < 0 or most >= pdm.n_landmarks:
                    return f"the validator's vertices are not of {pdm.n_landmarks} landmarks"
        return None

    def judge(
        self, pdm: PDM, image: Real[Array, "h w"], result: FitResult
    ) -> tuple[Float[Array, ""], None]:
        """See `AbstractConfidence.judge`; it says nothing of single landmarks."""
        del pdm
        return self(image, result.landmarks, result.pose.rotation), None

    def __call__(
        self,
        image: Real[Array, "h w"] | np.ndarray,
        landmarks: Float[Array, "n 2"],
        rotation: Float[Array, "3"],
    ) -> Float[Array, ""]:
        """The confidence in a face: 0 to 1, in steps of one over the network's outputs.

        The network of the view nearest to the rotation sorts the face into one of `b` bins of
        expected error; the likeliest bin `i` gives `1 - (i + 1/2) / b`. An image without texture
        gives 0. The confidence is piecewise constant: its derivative is 0.

        Args:
            image: grey levels 0-255.
            landmarks: (x, y) in image pixels.
            rotation: of the head, Euler angles (pitch, yaw, roll) in radians.
        """
        image = jnp.asarray(image)
        nearest = jnp.argmin(jnp.sum((self.centres - rotation) ** 2, axis=-1))
        views = self.views
        if isinstance(views, View):
            view = jax.tree.map(lambda array: array[nearest], views)
            return view_confidence(view, image, landmarks)
        return lax.switch(
            nearest, [lambda view=view: view_confidence(view, image, landmarks) for view in views]
        )


def _check_view(view: View, stacked: tuple[int, ...]) -> None:
    """Raise unless the arrays of a view, or of several stacked, and its layers go together."""

    def outputs(view: View) -> Array:
        if view.mask.ndim != 2:
            raise ValueError(f"its arrays are not stacked by views as {stacked}")
        return run_layers(view, view.mean)

    for _ in stacked:
        outputs = jax.vmap(outputs)
    try:
        shape = jax.eval_shape(outputs, view).shape
    except (TypeError, ValueError, IndexError) as error:
        raise ModelFileError("validator", f"layers do not go together: {error}") from None
    if len(shape) != 1 + len(stacked) or shape[:-1] != stacked or shape[-1] < 2:
        raise ModelFileError("validator", f"layers put out {shape}, not a number for each bin")


def run_layers(view: View, pixels: Float[Array, "y x"]) -> Array:
    """The outputs of a view's network for the pixels of a warped face."""
    maps = pixels[None]
    for layer in view.layers:
        maps = layer(maps)
    return maps


def view_confidence(
    view: View, image: Real[Array, "h w"], landmarks: Float[Array, "n 2"]
) -> Float[Array, ""]:
    """The confidence by the validator of one view."""
    face = warp_face(view, image, landmarks)
    pixels = view.mask.sum().astype(face.dtype)
    mean = face.sum() / pixels
    face = jnp.where(view.mask, face - mean, 0.0)
    variance = jnp.sum(face**2) / pixels
    # No more than rounding is left of a face of one grey level.
    textured = variance > (8 * jnp.finfo(face.dtype).eps * mean) ** 2
    face = face / jnp.sqrt(jnp.where(textured, variance, 1.0))
    maps = run_layers(view, jnp.where(view.mask, (face - view.mean) / view.deviation, 0.0))
    likeliest = jnp.argmax(maps)
    return jnp.where(textured, 1 - (likeliest + 0.5) / maps.size, 0.0).astype(landmarks.dtype)


def warp_face(
    view: View, image: Real[Array, "h w"], landmarks: Float[Array, "n 2"]
) -> Float[Array, "y x"]:
    """The face in the frame of the mean shape, sampled bilinearly; 0 outside image and mask."""
    positions = precise("yxt,yxtc->yxc", view.mixture, landmarks[view.vertices])
    # An area of a single pixel is a sample.
    unturned = jnp.array([1.0, 0.0], positions.dtype)
    pixels = sample_areas(image, positions.reshape(-1, 2), unturned, 1)
    return jnp.where(view.mask, pixels.reshape(view.mask.shape), 0.0)
