"""Low-rank adapters, by PEFT: few numbers are trained, and merged when saved (Hu et al.,
https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..modeling import is_learned


def with_adapters(model: PreTrainedModel, rank: int, alpha: float | None) -> nn.Module:
    """The model with adapters in all its linear layers but the last. These, and what masks learn, are what is trained.

    Raises:
        ValueError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("--lora needs PEFT; pip install 'hf-masking[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules="all-linear")
    adapted: nn.Module = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if is_learned(name):
            parameter.requires_grad_(True)
    return adapted


def merged(model: Any) -> PreTrainedModel:
    """A model without adapters that does the same; with adapters it is a second copy of all weights, for a moment."""
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    whole: PreTrainedModel = model
    return whole
