"""Build a model without its weights, to learn about it before they are loaded."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..patching.config import forget


def outline(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a causal language model on the meta device, without the mask that its config may carry.

    It can be patched with ``check=False``; it computes nothing.
    """
    forget(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=None)
