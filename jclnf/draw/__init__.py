"""Drawing fits over their images."""

from jclnf.draw._overlay import draw_overlay

__all__ = [
    "draw_overlay",
]
