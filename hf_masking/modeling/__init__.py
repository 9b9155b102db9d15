"""The Transformers side: patching, positions, saving and loading, checks."""

from .check import TOLERANCES, CheckReport, CheckRow, check_model
from .inspection import effective_mask, effective_weights
from .learned import is_learned, mask_penalties
from .modes import evaluating
from .patch import patch_model, patched, unpatch_model
from .pretrained import from_pretrained, load
from .record import layer_masks, pretrained
from .shape import positions_of, shape_of
from .spans import prefix_cache

__all__ = [
    "TOLERANCES",
    "CheckReport",
    "CheckRow",
    "check_model",
    "effective_mask",
    "effective_weights",
    "evaluating",
    "from_pretrained",
    "is_learned",
    "layer_masks",
    "load",
    "mask_penalties",
    "patch_model",
    "patched",
    "positions_of",
    "prefix_cache",
    "pretrained",
    "shape_of",
    "unpatch_model",
]
