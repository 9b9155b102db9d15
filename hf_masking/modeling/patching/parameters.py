"""The modules of adaptive masks inside the attention modules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...adaptive import LayerShape, Weighting
from ...masks import MaskExpression
from .. import features
from ..base_model.placement import device_of
from .layer_mask import NAME


def add_modules(
    attention: nn.Module, mask: MaskExpression, shape: LayerShape, before: Mapping[Weighting, nn.Module]
) -> tuple[dict[Weighting, nn.Module], list[RemovableHandle]]:
    """Put the modules of a mask into an attention module that it is attached to.

    Parameters:
        before: modules of an earlier mask by weighting; their parameters are kept where they mean the same here.

    Returns:
        The modules by weighting, and the hooks to remove with them.
    """
    device = device_of(attention)
    modules: dict[Weighting, nn.Module] = {}
    for weighting in mask.weightings:
        modules[weighting] = weighting.module(shape).to(device).train(attention.training)
        if (like := next((other for other in before if weighting.continues(other)), None)) is not None:
            # The same tensors: an optimizer may hold them.
            for name, parameter in before[like].named_parameters(recurse=False):
                setattr(modules[weighting], name, parameter)
        attention.get_submodule(NAME).add_module(weighting.name, modules[weighting])
    hooks = [
        attention.register_forward_pre_hook(features.compute, with_kwargs=True),
        attention.register_forward_hook(features.discard, always_call=True),
    ]
    return modules, hooks
