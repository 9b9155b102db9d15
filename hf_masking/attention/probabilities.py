"""Attention that also returns its probabilities, for ``output_attentions=True``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import MaskExpression
from ..plan import Documents
from . import reference
from .adaptive_reference import checked
from .inputs import Inputs, Options, check_heads


def attention_with_probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskExpression,
    documents: Documents,
    *,
    features: Sequence[Features] = (),
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attend by the dense reference, and return its probabilities, too. Quadratic in time and memory.

    Parameters:
        options: ``scale``, ``dropout``, ``softcap`` and ``sink_logits``; they and the shapes are as in
            `masked_attention`.

    Returns:
        The output ``[B, H, N, Dv]``, and the probabilities ``[B, H, N, M]`` before dropout. A row sums to 1; with sink
        logits to less, since these take a share, and to 0 where a query may attend to nothing.
    """
    check_heads(mask, query.shape[1])
    if mask.is_adaptive:
        features = checked(features, mask, query, key)
    # In half precision the probabilities of a row would not sum to 1.
    precise = torch.promote_types(query.dtype, torch.float32)
    inputs = Inputs(query, key, value, mask, documents, Options(**options), features)
    with torch.autocast(query.device.type, enabled=False):
        output, probabilities = reference.attend_with_probabilities(inputs.to(precise))
    return output.to(query.dtype), probabilities.to(query.dtype)
