"""The modules of adaptive masks inside the attention modules."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...adaptive import LayerShape, Weighting
from ...masks import MaskExpression
from .. import features
from ..base_model.placement import device_of
from .layer_mask import NAME

logger = logging.getLogger("hf_masking")


def add_modules(
    attention: nn.Module, mask: MaskExpression, shape: LayerShape, before: Mapping[Weighting, nn.Module]
) -> tuple[dict[Weighting, nn.Module], list[RemovableHandle]]:
    """Put the modules of a mask into an attention module that it is attached to.

    Parameters:
        before: modules of an earlier mask by weighting, which are used again; of another weighting, the parameters are
            kept where they mean the same here.

    Returns:
        The modules by weighting, and the hooks to remove with them.
    """
    modules = {weighting: _module(weighting, attention, shape, before) for weighting in mask.weightings}
    for weighting, module in modules.items():
        attention.get_submodule(NAME).add_module(weighting.name, module.train(attention.training))
    hooks = [
        attention.register_forward_pre_hook(features.compute, with_kwargs=True),
        attention.register_forward_hook(features.discard, always_call=True),
    ]
    return modules, hooks


def _module(
    weighting: Weighting, attention: nn.Module, shape: LayerShape, before: Mapping[Weighting, nn.Module]
) -> nn.Module:
    if weighting in before:
        # The same object: PEFT may have wrapped it, and accelerate may have hooks in it.
        return before[weighting]
    module = weighting.module(shape).to(device_of(attention))
    like = next((other for other in before if weighting.continues(other)), None)
    if like is not None:
        _take_over(module, before[like], weighting)
    return module


def _take_over(module: nn.Module, earlier: nn.Module, weighting: Weighting) -> None:
    """Use the parameters of an earlier module: the same tensors, since an optimizer may hold them."""
    held = dict(earlier.named_parameters())
    if held.keys() != dict(module.named_parameters()).keys():
        logger.warning(
            "what '%s' continues is dropped: %s has been put around its parameters", weighting, type(earlier).__name__
        )
        return
    for name, parameter in held.items():
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, parameter)
