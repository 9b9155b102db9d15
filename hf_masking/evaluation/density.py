"""Measure the density of a mask: counted for a static mask, observed on a text for an adaptive one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..masks.counting import density
from ..modeling import effective_mask, evaluating, layer_masks

MOST_TOKENS = 1024  # for adaptive masks, every pair of these tokens is computed


def realised_density(model: nn.Module, token_ids: Tensor, length: int) -> float:
    """Return the share of the causal pairs that a patched model allows, averaged over layers and heads.

    Parameters:
        token_ids: ``[N]``, a text; adaptive masks are observed on its first tokens, at most 1,024.
        length: number of tokens whose pairs are counted.
    """
    masks = layer_masks(model)
    if not any(mask.is_adaptive for mask in masks):
        return sum(density(mask.unmarked, length) for mask in masks) / len(masks)
    length = min(length, MOST_TOKENS, len(token_ids))
    tokens = token_ids[None, :length].to(next(model.parameters()).device)
    with evaluating(model):
        seen = effective_mask(model, input_ids=tokens, use_cache=False)
    return float(torch.stack([layer.double().sum((-1, -2)).mean() for layer in seen]).mean()) / (
        length * (length + 1) / 2
    )
