"""The definition that every backend is tested against: dense, in the precision of the inputs, one line per step."""

from __future__ import annotations

import torch
from torch import Tensor

from .adaptive_reference import log_weights
from .inputs import Inputs, Options


def attend(inputs: Inputs) -> Tensor:
    """Return the softmax over the allowed keys times their values; 0 for a query that may attend to nothing."""
    return attend_with_probabilities(inputs)[0]


def attend_with_probabilities(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return what `attend` returns, and the probabilities ``[B, H, N, M]`` before dropout."""
    mask, documents, features = inputs.mask, inputs.documents, inputs.features
    if mask.is_adaptive:
        weights = log_weights(mask, documents, inputs.query, inputs.key, features)
        return under_mask(*inputs.tensors, weights > -torch.inf, inputs.options, weights)
    allowed = torch.stack([documents.allows(member) for member in mask.heads], dim=1)
    return under_mask(*inputs.tensors, allowed, inputs.options)


def under_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    options: Options,
    log_weights_of_pairs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return output and probabilities for the allowed pairs: ``[B, 1, N, M]``, or one mask per group of query heads.

    Parameters:
        log_weights_of_pairs: the logarithms of their weights, in the same shape.
    """
    allowed = allowed.repeat_interleave(query.shape[1] // allowed.shape[1], dim=1)
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-2, -1) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if log_weights_of_pairs is not None:
        scores = scores + log_weights_of_pairs.masked_fill(~allowed, 0.0)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if options.sink_logits is not None:
        # A learned column that takes weight and has no value (gpt-oss).
        column = options.sink_logits.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    # Rows without a single allowed key are NaN after the softmax; filling them also cuts their gradient.
    weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return torch.nn.functional.dropout(weights, options.dropout) @ value, weights
