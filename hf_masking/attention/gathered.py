"""Few queries, or keys with gaps: the keys that they may see are gathered, and attended to densely.

This is how decoding runs. A bounded cache holds the keys that can still be read, so what stands next to each other in
it need not be neighbours in the text; and for one query a plan would cost more than the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import Mask
from ..plan import Documents
from . import one_choice, reference, sdpa
from .columns import allowed_columns, few
from .weights import log_weights

_MOST_PAIRS = 2**22  # of one chunk of queries, so that no mask of all queries x all keys is made


def attend(
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
) -> Tensor:
    """Shapes as in `masked_attention`."""
    if one_choice.can_do(mask, documents, query, features) and softcap is None and sink_logits is None:
        return one_choice.attend(query, key, value, mask, documents, features, scale=scale, dropout=dropout)
    rows = query.shape[0] * query.shape[1] if mask.is_adaptive else documents.query_positions.shape[0] * len(mask.heads)
    pairs = max(1, rows * key.shape[2])
    size = max(1, min(256, _MOST_PAIRS // pairs))
    # Gradients, and what is not a fused kernel, lose too much in half precision.
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    fused = softcap is None and sink_logits is None
    precise = query.dtype if query.dtype.itemsize > 2 or (fused and not learns) else torch.float32
    chunks = []
    for first in range(0, query.shape[2], size):
        mine = slice(first, first + size)
        some, columns, allowed, read = _selection(mask, documents, mine, query, key, features)
        keys, values = (x if columns is None else x.index_select(2, columns) for x in (key, value))
        q, k, v = (x.to(precise) for x in (query[:, :, mine], keys, values))
        if fused:
            chunks.append(sdpa.under_mask(q, k, v, allowed, scale=scale, dropout=dropout))
        else:
            sinks = None if sink_logits is None else sink_logits.to(precise)
            options: dict[str, Any] = {"dropout": dropout, "softcap": softcap, "sink_logits": sinks}
            options |= {"features": read} if mask.is_adaptive else {}
            chunks.append(reference.attend(q, k, v, mask, some, scale=scale, **options))
    return (chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)).to(query.dtype)


def _selection(
    mask: Mask, documents: Documents, rows: slice, query: Tensor, key: Tensor, features: Sequence[Features]
) -> tuple[Documents, Tensor | None, Tensor | None, list[Features]]:
    """What some queries need: their documents, the columns of keys (None: all), of these the pairs that the mask
    allows, or the logarithms of their weights, ``[B, M, q, k]`` (None: all), and their features."""
    if not mask.is_adaptive:
        return *allowed_columns(mask, documents, rows.start, rows.stop), []
    documents = documents.of_queries(rows)
    read = [one.of_queries(rows) for one in features]
    weights = log_weights(mask, documents, query[:, :, rows], key, read)
    if any(leaf.selects for leaf in mask.graded().leaves):
        # What a query chooses is chosen among all keys.
        return documents, None, weights, read
    columns = few((weights > -torch.inf).flatten(0, 2).any(0))
    if columns is None:
        return documents, None, weights, read
    return documents.of_keys(columns), columns, weights[..., columns], [one.of_keys(columns) for one in read]
