"""Sparse attention masks for Hugging Face decoders."""

from .attention import masked_attention
from .errors import UnsupportedModelError
from .evaluation import perplexity
from .masks import (
    BlockCausal,
    BlockLocal,
    Causal,
    Dilated,
    LogSparse,
    Mask,
    MaskSyntaxError,
    Offsets,
    PerHead,
    Prefix,
    Sinks,
    SlidingWindow,
    Spans,
    Strided,
    Summary,
)
from .modeling import check_model, effective_mask, from_pretrained, patch_model, patched, prefix_cache, unpatch_model

__all__ = [
    "BlockCausal",
    "BlockLocal",
    "Causal",
    "Dilated",
    "LogSparse",
    "Mask",
    "MaskSyntaxError",
    "Offsets",
    "PerHead",
    "Prefix",
    "Sinks",
    "SlidingWindow",
    "Spans",
    "Strided",
    "Summary",
    "UnsupportedModelError",
    "check_model",
    "effective_mask",
    "from_pretrained",
    "masked_attention",
    "patch_model",
    "patched",
    "perplexity",
    "prefix_cache",
    "unpatch_model",
]
