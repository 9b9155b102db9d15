"""Find the device on which a model computes; accelerate keeps offloaded weights on the meta device between calls."""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn

META = torch.device("meta")


def device_of(model: nn.Module) -> torch.device:
    """Return the device on which a model computes first; meta if its weights are not loaded."""
    for module in model.modules():
        if not _has_weights(module):
            continue
        with align_module_device(module):
            return next(module.parameters(recurse=False)).device
    return torch.device("cpu")


def require_weights(model: nn.Module) -> None:
    """Raise a ValueError for a model without weights, as `init_empty_weights` makes it."""
    for name, module in model.named_modules():
        on_meta = any(parameter.is_meta for parameter in module.parameters(recurse=False))
        if on_meta and not has_offloaded_params(module):
            raise ValueError(
                f"the checks run the model, and the weights of {name or type(model).__name__} are not loaded (they are "
                "on the meta device); load them first, or patch with check=False and call check_model(model) later"
            )


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
