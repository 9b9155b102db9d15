"""`Patch`: the notes of a patched model on its patch, and how to find them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig

from ...adaptive import Weighting
from ...masks import MaskExpression
from ..base_model.architecture import count_layers, pretrained
from .config import MaskConfig

ATTRIBUTE = "hf_masking_patch"  # the attribute of a model that holds its Patch


@dataclass
class Patch:
    """Everything that undoing a patch needs. deepcopy and pickle follow its references into the copied model.

    config: the masks, with layers counted from 0.
    configs: each module that has a config, with the one that it had before.
    learned: for each layer the modules of its mask's weightings.
    adapters: the configs of PEFT's adapters, which are saved with the mask.
    borrowed: configs of the user's own that a save has marked, until PEFT has written them.
    """

    config: MaskConfig
    configs: list[tuple[nn.Module, PreTrainedConfig]]
    hooks: list[RemovableHandle]
    learned: dict[int, dict[Weighting, nn.Module]]
    adapters: list[Any] = field(default_factory=list)
    borrowed: list[Any] = field(default_factory=list)


def find_patch(model: nn.Module) -> Patch | None:
    """Return the patch of the model or of a model inside it (a PEFT wrapper, say)."""
    return next((vars(module)[ATTRIBUTE] for module in model.modules() if ATTRIBUTE in vars(module)), None)


def require_patch(model: nn.Module) -> Patch:
    """Return the patch of a model; raises a ValueError if it is not patched."""
    patch = find_patch(model)
    if patch is None:
        raise ValueError(f"{type(model).__name__} is not patched; call patch_model(model, mask) first")
    return patch


def is_patched(model: nn.Module) -> bool:
    """Return whether a model, or a model inside it, runs under a mask."""
    return find_patch(model) is not None


def get_mask_config(model: nn.Module) -> MaskConfig | None:
    """Return the masks that a model runs under, with the backend; None if it is not patched."""
    patch = find_patch(model)
    return None if patch is None else patch.config


def layer_masks(model: nn.Module) -> list[MaskExpression]:
    """Return the mask of each layer, without the model's own windows; empty if the model is not patched."""
    patch = find_patch(model)
    return [] if patch is None else patch.config.masks(count_layers(pretrained(model).config))
