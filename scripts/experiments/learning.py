"""Train small models on the task of an experiment."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def learn(
    model: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    rate: float,
    weight_decay: float = 0.01,
    clip: float = math.inf,
) -> float:
    """Train with AdamW and one cycle; return the mean loss of the last twenty steps.

    Parameters:
        loss: draws the next batch and gives its loss.
        rate: the highest learning rate.
        clip: the greatest norm of gradients.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        current = loss()
        current.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        found.append(float(current.detach()))
    return sum(found[-20:]) / len(found[-20:])
