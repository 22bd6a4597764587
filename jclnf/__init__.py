"""jclnf: a differentiable Constrained Local Neural Field (CLNF) facial-landmark fitter in JAX.

Conventions, everywhere:

- Images are `(h, w)` arrays of grey levels 0-255, indexed `[y, x]`; what lies outside is 0.
- Points are `(x, y)` in pixels, x right, y down, pixel centres at integers.
- Boxes are `(x, y, w, h)` in pixels, tight around the face outline (eyebrows to chin, jaw to jaw).
- 3D is in millimetres, x right, y down, z away from the viewer.
- Angles are in radians; rotations are `Rx(rx) Ry(ry) Rz(rz)`, pitch, yaw, roll.
- Functions take one face; batches come from `jax.vmap` or `fit_images`.
"""

import lazy_loader

__version__ = "0.1.0"

# The stub beside this file lists the public names; each is imported when it is first used, so that
# the command line can answer before JAX is there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
