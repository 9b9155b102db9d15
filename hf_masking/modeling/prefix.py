"""Prefixes and marked spans that a caller says, where `generate` or a forward cannot know them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import DynamicCache

from . import cache as caches
from .record import layer_masks, pretrained


def prefix_cache(model: nn.Module, lengths: Sequence[int] | Tensor) -> DynamicCache:
    """An empty cache for prefixes that are not the whole prompt: ``generate(..., past_key_values=prefix_cache(...))``.

    Parameters:
        model: a model under a mask with ``prefix``.
        lengths: number of real tokens in the prefix of each prompt ``[B]``; the first call must have as many.

    Raises:
        ValueError: no mask of the model asks for a prefix.
    """
    if all(mask.is_bound for mask in layer_masks(model)):
        raise ValueError("a prefix is for a mask that asks for it, such as patch_model(model, 'prefix|causal')")
    cache = DynamicCache(config=pretrained(model).config)
    caches.set_prefix_lengths(cache, lengths)
    return cache
