"""Low-rank adapters, by PEFT: few numbers are trained, and merged when saved (Hu et al.,
https://arxiv.org/abs/2106.09685)."""

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
    """The model with adapters in all its linear layers but the last. These, and what masks learn, are what is trained.

    Raises:
        ValueError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("--lora needs PEFT; pip install 'hf-masking[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules="all-linear")
    with warnings.catch_warnings():
        # PEFT asks a model of Transformers for what has another name by now.
        warnings.simplefilter("ignore", FutureWarning)
        adapted: nn.Module = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if is_learned(name):
            parameter.requires_grad_(True)
    return adapted


def skeleton(model: nn.Module) -> nn.Module:
    """A copy that has no numbers, only shapes, for `merged`; made before an engine takes the model apart."""
    shapes = {id(parameter): _shape(parameter) for parameter in model.parameters()}
    # What the memo of a deep copy holds is not copied.
    return copy.deepcopy(model, shapes)


def _shape(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def merged(adapted: nn.Module, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model without adapters that does the same as the one with them.

    Parameters:
        adapted: the `skeleton` of the model with adapters.
        state: its weights by name; left as they are, so that there is a second copy of them for a moment.
    """
    numbers = {
        id(parameter): nn.Parameter(state[name].clone(), parameter.requires_grad)
        for name, parameter in adapted.named_parameters()
    }
    whole: Any = copy.deepcopy(adapted, numbers)
    plain: PreTrainedModel = whole.merge_and_unload()
    return plain
