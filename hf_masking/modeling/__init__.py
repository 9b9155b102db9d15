"""The Transformers side, arranged by lifetime: patches, forwards, caches, checks."""

from .api import cache_with_prefix, patch_model, patched, unpatch_model
from .base_model.architecture import positions_of, pretrained, shape_of
from .base_model.limits import check_fits, learned_positions, vocabulary_of
from .base_model.modes import evaluating
from .base_model.sharing import sharing_weights
from .checking.effective import effective_mask, effective_weights
from .checking.generation import check_generation
from .checking.model import check_model
from .checking.report import CheckReport, CheckRow
from .features import mask_penalties
from .loading.outline import outline
from .patching.config import MaskConfig
from .patching.label import label_of
from .patching.layer_mask import is_learned
from .patching.record import get_mask_config, is_patched, layer_masks
from .pretrained import base_model_of, from_pretrained, load, read_checkpoint
from .sequence_parallel import check_shards, losses_in_shards, sequence_parallel, shard_batch

__all__ = [
    "CheckReport",
    "CheckRow",
    "MaskConfig",
    "base_model_of",
    "cache_with_prefix",
    "check_fits",
    "check_generation",
    "check_model",
    "check_shards",
    "effective_mask",
    "effective_weights",
    "evaluating",
    "from_pretrained",
    "get_mask_config",
    "is_learned",
    "is_patched",
    "label_of",
    "layer_masks",
    "learned_positions",
    "load",
    "losses_in_shards",
    "mask_penalties",
    "outline",
    "patch_model",
    "patched",
    "positions_of",
    "pretrained",
    "read_checkpoint",
    "sequence_parallel",
    "shape_of",
    "shard_batch",
    "sharing_weights",
    "unpatch_model",
    "vocabulary_of",
]
