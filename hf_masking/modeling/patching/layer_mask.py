"""The mask of one layer, and the submodule of an attention module that holds it.

``print(model)`` shows the submodule, and it holds the parameters of adaptive masks. Beside it a patch adds to an
attention module only the hooks that compute features of an adaptive mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...masks import MaskExpression
from ..base_model.own_window import OwnWindow

NAME = "hf_masking"  # the submodule of an attention module, and so a part of the names of its parameters


@dataclass(frozen=True)
class LayerMask:
    """The mask of one layer, the backend that computes it, and whether it replaces the model's own window."""

    mask: MaskExpression
    backend: str = "auto"
    replace_model_window: bool = False

    def under(self, sliding_window: int | None) -> MaskExpression:
        """Return the mask in a layer where the model has such a window of its own."""
        if not sliding_window or self.replace_model_window:
            return self.mask
        return self.mask & OwnWindow(sliding_window)


class AttachedMask(nn.Module):
    """The mask of an attention module; its children are the modules of the adaptive masks in it, by name."""

    def __init__(self, layer_mask: LayerMask) -> None:
        super().__init__()
        self.layer_mask = layer_mask

    def extra_repr(self) -> str:
        backend = self.layer_mask.backend
        return f"'{self.layer_mask.mask}'" + ("" if backend == "auto" else f", backend={backend}")


def attach(module: nn.Module, layer_mask: LayerMask) -> None:
    """Give an attention module its mask, in place of an earlier one; parameters of adaptive masks stay."""
    held = module._modules.get(NAME)
    if isinstance(held, AttachedMask):
        held.layer_mask = layer_mask
    else:
        module.add_module(NAME, AttachedMask(layer_mask).train(module.training))


def attached(module: nn.Module) -> LayerMask | None:
    """Return the mask of an attention module, None if it has none."""
    held = module._modules.get(NAME)
    return held.layer_mask if isinstance(held, AttachedMask) else None


def detach(module: nn.Module) -> AttachedMask | None:
    """Remove the mask of an attention module, with its parameters, and return it; None if it has none."""
    held = module._modules.get(NAME)
    if not isinstance(held, AttachedMask):
        return None
    delattr(module, NAME)
    return held


def is_attention(module: nn.Module) -> bool:
    """Return whether a module is the attention of a layer, by the name of its class."""
    return "Attention" in type(module).__name__


def is_cross_attention(module: nn.Module) -> bool:
    """Return whether an attention module attends to an encoder, which models mark in different ways."""
    return bool(getattr(module, "is_cross_attention", False)) or "CrossAttention" in type(module).__name__


def is_learned(name: str) -> bool:
    """Return whether a parameter of this name belongs to an adaptive mask."""
    return NAME in name.split(".")
