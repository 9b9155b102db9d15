"""What a cache holds, against one that forgets nothing."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.cache_utils import Cache

from ..modeling.caching.layer import MaskedLayer


@dataclass(frozen=True)
class CacheSize:
    """Columns seen and kept, of the layer that keeps most; bytes held, and those of a full cache, of all layers."""

    seen: int
    kept: int
    held_bytes: int
    full_bytes: int


def cache_size(cache: Cache) -> CacheSize:
    """The size of the cache of a patched model; room for more that its tensors have counts as held.

    Raises:
        ValueError: it is not made of `MaskedLayer`s, or empty.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, MaskedLayer) and layer.is_initialized]
    if not layers:
        raise ValueError("this cache is empty, or keeps everything: only caches of patched attention layers are sized")
    return CacheSize(
        seen=max(layer.seen for layer in layers),
        kept=max(len(layer.columns) for layer in layers),
        held_bytes=sum(layer.held_bytes for layer in layers),
        full_bytes=sum(layer.column_bytes * layer.seen for layer in layers),
    )
