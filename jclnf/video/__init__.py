"""From a video to tables and images: reading, tracking, writing, and going on after a stop."""

import lazy_loader

# So that the command line knows the settings before JAX and OpenCV are there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
