"""What is written: files put in place whole."""

from jclnf.outputs._atomic import lock, remove_partial, write_bytes, write_png

__all__ = ["lock", "remove_partial", "write_bytes", "write_png"]
