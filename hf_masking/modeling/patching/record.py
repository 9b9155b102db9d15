"""What a patched model remembers of its patch, and how to find it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from ...adaptive import AdaptiveMask
from ...masks import MaskExpression
from ..base_model.architecture import count_layers, pretrained
from .config import Settings

ATTRIBUTE = "hf_masking_patch"  # the attribute of a model that holds its Patch


@dataclass
class Patch:
    """What it takes to undo a patch. deepcopy and pickle follow its references into the copied model.

    learned: for each layer the modules of its mask, by leaf, where that looks at the content.
    adapters: the configs of PEFT's adapters, which are saved with the mask.
    borrowed: configs of the user's own that a save has marked, until PEFT has written them.
    """

    settings: Settings
    backend: str
    configs: list[tuple[nn.Module, PreTrainedConfig]]
    hooks: list[RemovableHandle]
    learned: dict[int, dict[AdaptiveMask, nn.Module]]
    adapters: list[Any] = field(default_factory=list)
    borrowed: list[Any] = field(default_factory=list)


def find_patch(model: nn.Module) -> Patch | None:
    """The patch of the model or of a model inside it (a PEFT wrapper, say)."""
    return next((vars(module)[ATTRIBUTE] for module in model.modules() if ATTRIBUTE in vars(module)), None)


def is_patched(model: nn.Module) -> bool:
    """Return whether a model, or a model inside it, runs under a mask."""
    return find_patch(model) is not None


def settings_of(model: nn.Module) -> Settings:
    """The masks of a patched model, by layer; raises a ValueError if it is not patched."""
    patch = find_patch(model)
    if patch is None:
        raise ValueError(f"{type(model).__name__} is not patched, so no mask runs in it")
    return patch.settings


def layer_masks(model: nn.Module) -> list[MaskExpression]:
    """The mask of each layer of a patched model, without the windows of its own; empty if it is not patched."""
    patch = find_patch(model)
    return [] if patch is None else patch.settings.masks(count_layers(pretrained(model).config))
