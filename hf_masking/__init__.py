"""Sparse attention masks for Hugging Face decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import names_of

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .public import *  # noqa: F403
    from .training.penalty import MaskPenaltyMixin as MaskPenaltyMixin
    from .training.penalty import MaskPenaltyTrainer as MaskPenaltyTrainer
else:
    # Importing the `Trainer` of Transformers takes seconds, too.
    _PENALTY = ".training.penalty"
    __getattr__ = names_of(__name__, ".public", MaskPenaltyMixin=_PENALTY, MaskPenaltyTrainer=_PENALTY)
