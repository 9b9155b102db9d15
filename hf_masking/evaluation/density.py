"""How much a mask allows: counted for a static one, seen on a text for one that looks at the content."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..masks.counting import density
from ..modeling import effective_mask, evaluating, layer_masks

MOST_TOKENS = 1024  # all pairs of these are looked at


def realised_density(model: nn.Module, token_ids: Tensor, length: int) -> float:
    """The share of the causal pairs that a patched model lets through, mean over its layers and heads.

    Parameters:
        token_ids: ``[N]``, a text; of it the first tokens are read where the content has a say, 1,024 at most.
        length: number of tokens of which the pairs are counted.
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
