"""The gradient of a loss through the fit: with respect to the image and to the settings.

python examples/04_gradient.py [PHOTO]

The loss here is how far the lips are apart: its gradient in the image says which pixels decide it.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import samples

import jclnf

path = sys.argv[1] if len(sys.argv) > 1 else samples.photograph()

model = jclnf.load_model()
grey = jclnf.images.read_image(path)
box = jclnf.detect.find_faces(jclnf.detect.default(), grey)[0]
# A JAX array is taken as it is, in any size: cut out the face, or each photograph compiles anew.
face = jclnf.crop(grey, box)


def opening(image, params):
    """Distance of the inner lips in parts of the distance of the outer eye corners."""
    points = jclnf.fit(model, image, face.box, params).landmarks
    lips, eyes = points[66] - points[62], points[45] - points[36]
    return jnp.linalg.norm(lips) / jnp.linalg.norm(eyes)


image = jnp.asarray(face.image, jnp.float32)
value, (by_pixel, by_setting) = jax.jit(jax.value_and_grad(opening, argnums=(0, 1)))(
    image, model.defaults
)
print(f"opening of the mouth: {float(value):.3f} eye distances")
y, x = np.unravel_index(np.argmax(np.abs(by_pixel)), by_pixel.shape)
print(f"it depends most on the pixel at {np.array([x, y]) + face.offset}")
print(f"by the regularisation of each scale: {np.asarray(by_setting.regularisation)}")
print(f"by the kernel width of each scale: {np.asarray(by_setting.kernel_width)}")
