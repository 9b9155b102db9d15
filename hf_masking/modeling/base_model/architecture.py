"""Read a model's config: its layers, heads, positions and windows, and whether it can be patched."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...adaptive import LayerShape
from ...errors import UnsupportedModelError
from ...masks import FOREVER


def pretrained(model: nn.Module) -> PreTrainedModel:
    """Return the Transformers model in a wrapper, or the model itself.

    Raises:
        UnsupportedModelError: there is none, or its kind cannot be patched.
    """
    found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if found is None:
        raise UnsupportedModelError(f"expected a Transformers model (PreTrainedModel), got {type(model).__name__}")
    if found.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{type(found).__name__} is an encoder-decoder; only decoders can be patched")
    if getattr(found.config.get_text_config(), "attention_chunk_size", None):
        raise UnsupportedModelError(f"{type(found).__name__} has chunked attention layers, which are not supported")
    if getattr(found.config.get_text_config(), "num_kv_shared_layers", 0):
        raise UnsupportedModelError(f"{type(found).__name__} has layers that share keys, which are not supported")
    return found


def count_layers(config: PreTrainedConfig) -> int:
    """Return the number of decoder layers."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def shape_of(config: PreTrainedConfig, layer: int = 0) -> LayerShape:
    """Return the shape of the attention of a layer."""
    text: Any = config.get_text_config(decoder=True)
    # Where layers differ (Gemma 4), each has its own config, and the common one raises for what differs.
    own = getattr(text, "per_layer_config", None)
    text = text if own is None else own[layer]
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return LayerShape(hidden, heads, key_heads, int(getattr(text, "head_dim", None) or hidden // heads))


def positions_of(config: PreTrainedConfig) -> int:
    """Return the number of positions that the model was made for; FOREVER if its config does not say.

    Raises:
        ValueError: the config gives a negative number.
    """
    positions = int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or FOREVER)
    if positions < 0:
        raise ValueError(f"max_position_embeddings must be at least 1, got {positions}; correct the config.json")
    return positions


def own_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Return the width of the model's own sliding window in a layer, the query included; None for no window."""
    text = config.get_text_config(decoder=True)
    window: int | None = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
