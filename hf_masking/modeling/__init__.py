"""The Transformers side: patching, positions, saving and loading, checks."""

from .check import check_model
from .inspection import effective_mask, effective_weights
from .label import label_of
from .learned import is_learned, mask_penalties
from .limits import check_fits, learned_positions, vocabulary_of
from .modes import evaluating
from .outline import outline
from .patch import patch_model, patched, unpatch_model
from .pretrained import base_model_of, from_pretrained, load
from .record import layer_masks, pretrained, settings_of
from .report import CheckReport, CheckRow
from .shape import positions_of, shape_of
from .sharing import sharing_weights
from .spans import cache_with_prefix

__all__ = [
    "CheckReport",
    "CheckRow",
    "base_model_of",
    "cache_with_prefix",
    "check_fits",
    "check_model",
    "effective_mask",
    "effective_weights",
    "evaluating",
    "from_pretrained",
    "is_learned",
    "label_of",
    "layer_masks",
    "learned_positions",
    "load",
    "mask_penalties",
    "outline",
    "patch_model",
    "patched",
    "positions_of",
    "pretrained",
    "settings_of",
    "shape_of",
    "sharing_weights",
    "unpatch_model",
    "vocabulary_of",
]
