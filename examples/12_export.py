"""A fit as one file that runs without jclnf: for a service, by `jax.export`.

python examples/12_export.py [PHOTO] [OUT.jaxexport]

The file holds the compiled form of the fit, weights included. Whoever calls it cuts the face out
to the size that it was exported for.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import samples
from jax import export

import jclnf

path = sys.argv[1] if len(sys.argv) > 1 else samples.photograph()
out = Path(sys.argv[2] if len(sys.argv) > 2 else "fit.jaxexport")

model = jclnf.load_model()
grey = jclnf.images.read_image(path)
box = jclnf.detect.find_faces(jclnf.detect.default(), grey)[0]
face = jclnf.crop(grey, box)


@jax.jit
def fit(image, box):
    """Plain arrays in, plain arrays out."""
    result = jclnf.fit(model, image, box)
    return {
        "landmarks": result.landmarks,
        "rotation": result.pose.rotation,
        "confidence": result.confidence,
    }


shapes = (
    jax.ShapeDtypeStruct(face.image.shape, jnp.float32),
    jax.ShapeDtypeStruct((4,), jnp.float32),
)
exported = export.export(fit, platforms=["cpu", "cuda"])(*shapes)
out.write_bytes(exported.serialize())
print(f"{out}: {out.stat().st_size / 2**20:.1f} MB, for {', '.join(exported.platforms)}")

# In the service: JAX and this file are enough.
served = export.deserialize(bytearray(out.read_bytes()))
answer = served.call(face.image, face.box)
print("tip of the nose at", np.round(answer["landmarks"][30] + face.offset, 1))
