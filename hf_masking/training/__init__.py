"""Fine-tuning under a mask, and the comparison of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_of

if TYPE_CHECKING:
    from .public import *  # noqa: F403
else:
    # The command line reads `training.settings` for its help.
    __getattr__ = names_of(__name__, ".public")
