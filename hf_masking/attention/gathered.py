"""Few queries, or keys with gaps: the keys that they may see are gathered, and attended to densely.

This is how decoding runs. A bounded cache holds the keys that can still be read, so what stands next to each other in
it need not be neighbours in the text; and for one query a plan would cost more than the attention.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..masks import Mask
from ..plan import Documents
from . import reference

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
) -> Tensor:
    """Shapes as in `masked_attention`."""
    pairs = max(1, documents.query_positions.shape[0] * len(mask.heads) * key.shape[2])
    size = max(1, min(256, _MOST_PAIRS // pairs))
    # Gradients, and what is not a fused kernel, lose too much in half precision.
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    fused = softcap is None and sink_logits is None
    precise = query.dtype if query.dtype.itemsize > 2 or (fused and not learns) else torch.float32
    chunks = []
    for first in range(0, query.shape[2], size):
        some, columns, allowed = _selection(mask, documents, first, size)
        keys, values = (x if columns is None else x.index_select(2, columns) for x in (key, value))
        q, k, v = (x.to(precise) for x in (query[:, :, first : first + size], keys, values))
        if fused:
            chunks.append(_dense(q, k, v, allowed, scale, dropout))
        else:
            sinks = None if sink_logits is None else sink_logits.to(precise)
            options: dict[str, Any] = {"dropout": dropout, "softcap": softcap, "sink_logits": sinks}
            chunks.append(reference.attend(q, k, v, mask, some, scale=scale, **options))
    return (chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)).to(query.dtype)


# All layers of a forward that have the same mask ask for the same selection.
@functools.lru_cache(maxsize=4)
def _selection(
    mask: Mask, documents: Documents, first: int, size: int
) -> tuple[Documents, Tensor | None, Tensor | None]:
    """What some queries need: their documents, the columns of keys (None: all), and of these the pairs that the mask
    allows ``[B, M, q, k]`` (None: all)."""
    with torch.inference_mode(False):
        documents = documents.of_queries(slice(first, first + size))
        allowed = torch.stack([documents.allows(member) for member in mask.heads], dim=1)
        needed = allowed.flatten(0, 2).any(0)
        columns = None
        # To copy keys costs as much as to read them: it pays where few are needed.
        if int(needed.sum()) * 2 <= len(needed):
            columns = needed.nonzero()[:, 0]
            allowed, documents = allowed[..., columns], documents.of_keys(columns)
        return documents, columns, None if bool(allowed.all()) else allowed


def _dense(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float, dropout: float) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    blind = None
    if allowed is not None:
        allowed = allowed.repeat_interleave(query.shape[1] // allowed.shape[1], 1) if allowed.shape[1] > 1 else allowed
        blind = ~allowed.any(-1, keepdim=True)
        allowed = allowed | blind  # a softmax over nothing is not a number; these rows are filled below
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scale, enable_gqa=grouped
    )
    return output if blind is None else output.masked_fill(blind, 0.0)
