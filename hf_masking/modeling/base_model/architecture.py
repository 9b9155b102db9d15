"""How many heads a layer has, of which size, and how far it looks by itself."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from ...adaptive import LayerShape
from ...masks import FOREVER


def shape_of(config: PreTrainedConfig, layer: int = 0) -> LayerShape:
    """The shape of the attention of a layer."""
    text: Any = config.get_text_config(decoder=True)
    # Where layers differ (Gemma 4), each has a config of its own, and the common one refuses to answer.
    own = getattr(text, "per_layer_config", None)
    text = text if own is None else own[layer]
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    return LayerShape(hidden, heads, key_heads, int(getattr(text, "head_dim", None) or hidden // heads))


def positions_of(config: PreTrainedConfig) -> int:
    """Return how many positions the model is made for; a large number where its config does not say.

    Raises:
        ValueError: the config says fewer than none.
    """
    positions = int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or FOREVER)
    if positions < 0:
        raise ValueError(f"max_position_embeddings must be at least 1, got {positions}; correct the config.json")
    return positions


def own_window(config: PreTrainedConfig, layer: int) -> int | None:
    """The width of the window that the model itself gives a layer, if it does; the query counts."""
    text = config.get_text_config(decoder=True)
    window: int | None = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
