"""PyTorch's dense attention under the same mask: the fastest way where there is little to leave out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..masks import Mask
from ..plan import Documents, Lengths, is_causal
from ..plan.memory import remember


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
    """One call for each document, `is_causal` where the mask is that; one for all where keys have gaps.

    Shapes as in `masked_attention`.

    Raises:
        ValueError: a soft cap or sink logits, which SDPA does not know.
    """
    refuse(softcap, sink_logits)
    if documents.scattered:
        allowed = torch.stack([documents.allows(member) for member in mask.heads], dim=1)
        return under_mask(query, key, value, allowed, scale=scale, dropout=dropout)
    members = mask.heads
    if documents.alike and len(members) == 1 and len(documents.segments) == 1:
        segment = documents.segments[0]
        if (segment.lengths.queries, segment.lengths.keys) == (query.shape[2], key.shape[2]):
            return _one(query, key, value, segment.bind(mask), segment.lengths, scale, dropout)
    output = query.new_zeros(*query.shape[:3], value.shape[-1])
    size, group = query.shape[1] // len(members), query.shape[1] // key.shape[1]
    for segment in documents.segments:
        row_range = documents.rows_of(segment, len(query))
        rows = slice(row_range.start, row_range.stop)
        for index, member in enumerate(members):
            heads = slice(index * size, (index + 1) * size)
            key_heads = torch.arange(heads.start, heads.stop, device=key.device) // group
            keys, values = (x[rows, :, segment.keys] for x in (key, value))
            if len(members) > 1:
                keys, values = keys[:, key_heads], values[:, key_heads]
            queries = query[rows, heads][:, :, segment.queries]
            part = _one(queries, keys, values, segment.bind(member), segment.lengths, scale, dropout)
            output[rows, heads, segment.queries] = part.to(output.dtype)  # under autocast they differ
    if not documents.segments:
        # Nothing but padding: 0 that still depends on the inputs, so that a backward finds its way.
        nothing = torch.ones((), dtype=torch.bool, device=query.device)
        output += sum(x.masked_fill(nothing, 0.0).sum() for x in (query, key, value))
    return output


def refuse(softcap: float | None, sink_logits: Tensor | None) -> None:
    """Raise a ValueError for what SDPA does not know."""
    if softcap is not None or sink_logits is not None:
        what = "softcap" if softcap is not None else "sink_logits"
        raise ValueError(f"backend 'sdpa' does not know {what}; use backend='blockwise' or 'reference'")


def under_mask(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, scale: float, dropout: float
) -> Tensor:
    """Attend densely under ``allowed``: booleans or logarithms of weights ``[B, M, Q, K]``, None for every pair.

    M masks are those of as many groups of query heads. A row that sees nothing gives 0.
    """
    blind = None
    if allowed is not None:
        allowed = allowed.repeat_interleave(query.shape[1] // allowed.shape[1], 1) if allowed.shape[1] > 1 else allowed
        # A softmax over nothing is not a number; these rows see everything, and are filled below.
        if allowed.dtype == torch.bool:
            blind = ~allowed.any(-1, keepdim=True)
            allowed = allowed | blind
        else:
            blind = (allowed == -torch.inf).all(-1, keepdim=True)
            allowed = allowed.masked_fill(blind, 0.0).to(query.dtype)
    # In a compiled graph a comparison of sizes is a boolean only where it is branched on.
    grouped = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout, scale=scale, **grouped
    )
    return output if blind is None else output.masked_fill(blind, 0.0)


def _one(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, lengths: Lengths, scale: float, dropout: float
) -> Tensor:
    causal = is_causal(mask, lengths)
    allowed, blind = (None, None) if causal else _dense(mask, lengths, query.device)
    if causal and scale < torch.finfo(torch.float32).tiny:
        # The trap: under `is_causal` the CPU kernel multiplies its -inf by the scale, which is NaN or +inf then.
        query, scale = query * scale, 1.0
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return output if blind is None else output.masked_fill(blind, 0.0)


@remember(2**28, lambda dense: sum(x.nbytes for x in dense if x is not None))
def _dense(mask: Mask, lengths: Lengths, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The mask as ``[queries, keys]``, and the rows ``[queries, 1]`` that see nothing, if there are any.

    Those see everything in the mask, since a softmax over nothing is not a number; their output is to be filled.
    """
    with torch.inference_mode(False):  # what is kept must serve a training step, too
        allowed = mask.allows(lengths.query_positions(device)[:, None], lengths.key_positions(device)[None, :])
        blind = ~allowed.any(-1, keepdim=True)
        return (allowed | blind, blind) if bool(blind.any()) else (allowed, None)
