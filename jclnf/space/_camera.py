"""The camera: how points in space, in its own frame, come to pixels.

The camera's frame has its origin in the camera's centre, x to the right, y down and z into the
scene, in millimetres. A point `(X, Y, Z)` is seen at `(fx X / Z + cx, fy Y / Z + cy)`.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jclnf.errors import ParamsError

FOCAL_LENGTH = 500.0
"""Focal length in pixels that is assumed of images of 640x480 pixels, as OpenFace does."""


class Camera(eqx.Module):
    """A pinhole camera without distortion."""

    fx: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    """Focal length along x, in pixels."""
    fy: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    """Focal length along y, in pixels."""
    cx: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    """Where the optical axis meets the image, in pixels."""
    cy: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def __check_init__(self) -> None:
        values = [self.fx, self.fy, self.cx, self.cy]
        if any(isinstance(v, jax.core.Tracer) or jnp.ndim(v) for v in values):
            return
        if not all(math.isfinite(v) for v in values) or self.fx <= 0 or self.fy <= 0:
            raise ParamsError(
                f"camera: focal lengths ({self.fx}, {self.fy}) must be positive and the centre "
                f"({self.cx}, {self.cy}) finite, all in pixels"
            )

    @staticmethod
    def assumed(
        width: int,
        height: int,
        focal: float | tuple[float, float] | None = None,
        centre: tuple[float, float] | None = None,
    ) -> "Camera":
        """The camera of images that nothing is known about: OpenFace's assumption.

        The centre is that of the image. A wrong focal length scales distances with it, and hardly
        changes the rotation of a head near the middle of the image.

        Args:
            width: of the images, in pixels.
            height: of the images, in pixels.
            focal: focal length in pixels, or those along x and y, if they are known.
            centre: x and y of the optical axis in pixels, if it is known.
        """
        if focal is None:
            focal = FOCAL_LENGTH * (width / 640 + height / 480) / 2
        fx, fy = focal if isinstance(focal, tuple) else (focal, focal)
        cx, cy = (width / 2, height / 2) if centre is None else centre
        return Camera(float(fx), float(fy), float(cx), float(cy))  # type: ignore[arg-type]

    @property
    def numbers(self) -> dict[str, Any]:
        """The four numbers by their names."""
        return {name: float(getattr(self, name)) for name in ("fx", "fy", "cx", "cy")}

    def project(self, points: Float[Array, "n 3"]) -> Float[Array, "n 2"]:
        """Pixels at which points (millimetres, in the camera's frame) are seen."""
        x, y, z = points.T
        return jnp.stack([self.fx * x / z + self.cx, self.fy * y / z + self.cy], axis=-1)
