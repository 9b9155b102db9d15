"""The Transformers side: patching, positions, saving and loading, checks."""

from .check import TOLERANCES, CheckReport, CheckRow, check_model
from .inspection import effective_mask
from .modes import evaluating
from .patch import patch_model, patched, unpatch_model
from .pretrained import from_pretrained
from .record import layer_masks, pretrained
from .spans import prefix_cache

__all__ = [
    "TOLERANCES",
    "CheckReport",
    "CheckRow",
    "check_model",
    "effective_mask",
    "evaluating",
    "from_pretrained",
    "layer_masks",
    "patch_model",
    "patched",
    "prefix_cache",
    "pretrained",
    "unpatch_model",
]
