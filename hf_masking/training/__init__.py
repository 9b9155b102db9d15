"""Fine-tune under a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_of

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    # `--help` reads `training.settings` and must not import torch.
    __getattr__ = names_of(__name__, ".public")
