"""Train low-rank adapters (PEFT) and merge them when the model is saved (https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling import is_learned


def with_adapters(model: PreTrainedModel, rank: int, alpha: float | None) -> nn.Module:
    """Return the model with adapters in all linear layers but the last; they and the masks' parameters are trained.

    Raises:
        ValueError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("--lora needs PEFT; pip install 'hf-masking[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules="all-linear")
    with warnings.catch_warnings():
        # PEFT uses a method of Transformers under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        adapted: nn.Module = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if is_learned(name):
            parameter.requires_grad_(True)
    return adapted


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy with shapes but no data, for `merged`; made before an engine shards the model."""
    shapes = {id(parameter): _shape(parameter) for parameter in model.parameters()}
    # A deep copy reuses what is in its memo.
    return copy.deepcopy(model, shapes)


def _shape(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def merged(adapted: nn.Module, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a model without adapters that computes the same as the one with them.

    Parameters:
        adapted: the `skeleton` of the model with adapters.
        state: its weights by name; they are copied, so memory holds them twice for a moment.
    """
    numbers = {
        id(parameter): nn.Parameter(state[name].clone(), parameter.requires_grad)
        for name, parameter in adapted.named_parameters()
    }
    whole: Any = copy.deepcopy(adapted, numbers)
    plain: PreTrainedModel = whole.merge_and_unload()
    return plain
