"""Make the optimizer: which parameters decay, and at which learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..modeling import is_learned
from .settings import TrainingSettings


def optimizer_of(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return AdamW: only matrices decay, and the parameters of adaptive masks have their own learning rate."""
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": settings.weight_decay},
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": 0.0, "lr": settings.mask_learning_rate},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = 2 if is_learned(name) else int(parameter.ndim < 2)
            groups[kind]["params"].append(parameter)
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=settings.learning_rate, betas=(0.9, 0.95))
