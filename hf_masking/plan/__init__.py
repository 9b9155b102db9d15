"""HOW to compute a mask without touching what it excludes. Today: where documents start and end."""

from .documents import Documents

__all__ = ["Documents"]
