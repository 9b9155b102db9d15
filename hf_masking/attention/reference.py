"""The root of truth: dense, in whatever precision the inputs have, a line a step of the definition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import Mask
from ..plan import Documents
from .weights import log_weights


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask, documents: Documents, **options: Any) -> Tensor:
    """Softmax over the allowed keys; a query that may attend to nothing gives 0. Shapes as in `masked_attention`."""
    return attend_with_probabilities(query, key, value, mask, documents, **options)[0]


def attend_with_probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    documents: Documents,
    *,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    features: Sequence[Features] = (),
) -> tuple[Tensor, Tensor]:
    """`attend`, and the probabilities ``[B, Hq, Nq, Nk]`` before dropout."""
    options: dict[str, Any] = {"scale": scale, "dropout": dropout, "softcap": softcap, "sink_logits": sink_logits}
    if mask.is_adaptive:
        weights = log_weights(mask, documents, query, key, features)
        return under_mask(query, key, value, weights > -torch.inf, weights, **options)
    allowed = torch.stack([documents.allows(member) for member in mask.heads], dim=1)
    return under_mask(query, key, value, allowed, **options)


def under_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    weights_of_pairs: Tensor | None = None,
    *,
    scale: float,
    dropout: float,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`attend_with_probabilities` to the pairs that are allowed, ``[B, M, Q, K]`` for M groups of query heads.

    Parameters:
        weights_of_pairs: the logarithms of their weights, in the same shape.
    """
    allowed = allowed.repeat_interleave(query.shape[1] // allowed.shape[1], dim=1)
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-2, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if weights_of_pairs is not None:
        scores = scores + weights_of_pairs.masked_fill(~allowed, 0.0)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if sink_logits is not None:
        # A learned column that takes weight and gives no value (gpt-oss).
        column = sink_logits.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    # Rows without a single allowed key are NaN after the softmax; filling them also cuts their gradient.
    weights = weights.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return torch.nn.functional.dropout(weights, dropout) @ value, weights
