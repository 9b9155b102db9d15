"""Export the names of `hf_masking`, which imports this module when the first one is used."""

from .adaptive import AdaptiveSpan, Relevance, TopBlocks
from .attention import masked_attention
from .errors import UnsupportedModelError
from .evaluation import perplexity
from .masks import (
    BlockCausal,
    BlockLocal,
    Causal,
    Dilated,
    HeadMasks,
    LogSparse,
    Mask,
    Offsets,
    Prefix,
    Sinks,
    SlidingWindow,
    Spans,
    Strided,
    Summary,
)
from .modeling import (
    cache_with_prefix,
    check_generation,
    check_model,
    effective_mask,
    effective_weights,
    from_pretrained,
    mask_penalties,
    patch_model,
    patched,
    unpatch_model,
)
from .spec import MaskSyntaxError, parse_mask, register_mask

__all__ = [
    "AdaptiveSpan",
    "BlockCausal",
    "BlockLocal",
    "Causal",
    "Dilated",
    "HeadMasks",
    "LogSparse",
    "Mask",
    "MaskSyntaxError",
    "Offsets",
    "Prefix",
    "Relevance",
    "Sinks",
    "SlidingWindow",
    "Spans",
    "Strided",
    "Summary",
    "TopBlocks",
    "UnsupportedModelError",
    "cache_with_prefix",
    "check_generation",
    "check_model",
    "effective_mask",
    "effective_weights",
    "from_pretrained",
    "mask_penalties",
    "masked_attention",
    "parse_mask",
    "patch_model",
    "patched",
    "perplexity",
    "register_mask",
    "unpatch_model",
]
