"""Drawing faces over their images: `draw.landmarks(image, result.landmarks)`."""

from jclnf.draw._landmarks import landmarks

__all__ = ["landmarks"]
