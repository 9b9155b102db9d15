"""Sparse attention masks for Hugging Face decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import names_of

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    __getattr__ = names_of(__name__, ".public")
