"""Measure a cache, against one that retains every key."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.cache_utils import Cache

from ..modeling.caching.layer import MaskedLayer


@dataclass(frozen=True)
class CacheSize:
    """The size of a cache.

    seen, kept: columns seen and retained, of the layer that retains most.
    held_bytes, full_bytes: bytes of all layers, and those of a cache that evicts nothing.
    """

    seen: int
    kept: int
    held_bytes: int
    full_bytes: int


def cache_size(cache: Cache) -> CacheSize:
    """Return the size of a patched model's cache; spare room in its tensors counts as held.

    Raises:
        ValueError: the cache is empty, or has no `MaskedLayer`.
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
