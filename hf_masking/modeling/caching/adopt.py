"""Adopting a cache: its ordinary layers become layers that know the mask of the model's attention."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    QuantizedCache,
)

from ..base_model.architecture import own_window
from ..in_graph import ADAPTS, refuse_if
from ..patching.layer_mask import LayerMask, attached
from .layer import MaskedLayer
from .record import record_of

_ORDINARY = (DynamicLayer, DynamicSlidingWindowLayer, MaskedLayer)


def adopt(cache: Cache, model: PreTrainedModel, adaptive: bool = False) -> bool:
    """Replace the layers of an empty cache by `MaskedLayer`s under the masks of a model.

    Parameters:
        model: a patched model.
        adaptive: one of its masks is adaptive, so that features are stored beside the keys.

    Returns:
        Whether all layers of the cache, which may have been adopted before, are `MaskedLayer`s.

    Raises:
        ValueError: the cache changes its keys, or was filled by a model that is not patched.
    """
    if isinstance(cache, QuantizedCache):
        raise ValueError("a quantized cache changes the keys, so what it gives is not exact; use the default cache")
    ours = isinstance(cache, DynamicCache)
    if not ours or cache.get_seq_length():
        _refuse_foreign(cache)
    elif torch.compiler.is_compiling() and not adaptive:
        # What is evicted depends on the values of tensors, which a compiled graph does not know.
        _without_windows(cache)
    elif all(type(layer) in _ORDINARY for layer in cache.layers):
        _replace(cache, model)
    else:
        # Layers with a recurrent state beside their keys stay as they are.
        _without_windows(cache)
    record_of(cache).filled = True
    return ours and bool(cache.layers) and all(type(layer) is MaskedLayer for layer in cache.layers)


def new_cache(model: PreTrainedModel, adaptive: bool) -> DynamicCache | None:
    """Return a cache for a model that would make one itself; None where its layers are of another kind."""
    cache = DynamicCache(config=model.config)
    return cache if adopt(cache, model, adaptive) else None


def layer_of(cache: Cache | None, module: nn.Module) -> MaskedLayer | None:
    """Return the cache layer of an attention module, if it is a `MaskedLayer`."""
    index = getattr(module, "layer_idx", None)
    if cache is None or not isinstance(index, int) or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    return layer if isinstance(layer, MaskedLayer) else None


def self_attention_cache(cache: Cache | None) -> Cache | None:
    """Return the part of a cache that holds a decoder's own keys: all of it, unless a part is for an encoder's."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def _without_windows(cache: Cache) -> None:
    cache.layers[:] = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]


@torch.compiler.disable(reason=ADAPTS)
def _replace(cache: Cache, model: PreTrainedModel) -> None:
    masks = _masks_by_layer(model)
    # A cache that was made without a config has no layers yet.
    count = len(cache.layers) or max(masks) + 1
    cache.layers[:] = [MaskedLayer(*masks[index]) if index in masks else DynamicLayer() for index in range(count)]


def _masks_by_layer(model: PreTrainedModel) -> dict[int, tuple[LayerMask, int | None]]:
    """Return the mask of each layer, and the model's own window there."""
    found: dict[int, tuple[LayerMask, int | None]] = {}
    for module in model.modules():
        layer_mask = attached(module)
        if layer_mask is not None:
            layer = int(module.layer_idx)
            window = own_window(model.config, layer)
            # Where the module has another window than the config says, more keys are retained.
            same = getattr(module, "sliding_window", window) == window
            found[layer] = layer_mask, window if same else None
    return found


def _refuse_foreign(cache: Cache) -> None:
    """Raise a ValueError for a cache that a model has filled without a mask."""
    if not record_of(cache).filled:
        seen = torch.as_tensor(cache.get_seq_length())  # a static cache counts its tokens on the device
        count = "" if torch.compiler.is_compiling() else f"{int(seen)} "
        refuse_if(
            seen > 0,
            f"this cache holds {count}tokens that no patched model has read (it is of the model without its mask, or "
            "of prefix tuning); start with an empty cache",
        )
