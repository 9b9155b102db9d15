"""PyTorch's dense attention under the same mask: the fastest where the mask excludes few pairs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..masks import Mask
from ..plan import DocumentMask, Lengths
from ..plan.memory import remember
from .inputs import Inputs


def attend(inputs: Inputs) -> Tensor:
    """Attend with one call per document; with a single one, under a dense mask, if the keys have gaps."""
    query, key, value = inputs.tensors
    documents, options = inputs.documents, inputs.options
    if documents.scattered:
        allowed = torch.stack([documents.allows(member) for member in inputs.mask.heads], dim=1)
        return under_mask(query, key, value, allowed, scale=options.scale, dropout=options.dropout)
    if documents.alike and len(inputs.document_masks) == 1:
        (whole,) = inputs.document_masks
        if (whole.lengths.queries, whole.lengths.keys) == (query.shape[2], key.shape[2]):
            return _in_document(inputs, whole)
    output = query.new_zeros(*query.shape[:3], value.shape[-1])
    for document_mask in inputs.document_masks:
        segment, heads = document_mask.segment, document_mask.heads
        row_range = documents.rows_of(segment, len(query))
        rows = slice(row_range.start, row_range.stop)
        keys, values = (x[rows, :, segment.keys] for x in (key, value))
        if len(inputs.mask.heads) > 1:
            key_heads = torch.arange(heads.start, heads.stop, device=key.device) // inputs.group
            keys, values = keys[:, key_heads], values[:, key_heads]
        queries = query[rows, heads][:, :, segment.queries]
        part = _in_document(replace(inputs, query=queries, key=keys, value=values), document_mask)
        output[rows, heads, segment.queries] = part.to(output.dtype)  # under autocast they differ
    if not inputs.document_masks:
        # Nothing but padding: 0 that still depends on the inputs, so that a backward pass finds its way.
        nothing = torch.ones((), dtype=torch.bool, device=query.device)
        output += sum(x.masked_fill(nothing, 0.0).sum() for x in (query, key, value))
    return output


def under_mask(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, scale: float, dropout: float
) -> Tensor:
    """Attend densely under booleans or logarithms of weights; a query that may attend to nothing gives 0.

    Parameters:
        allowed: ``[B, 1, N, M]``, or one mask per group of query heads; None for every pair.
    """
    blind = None
    if allowed is not None:
        allowed = allowed.repeat_interleave(query.shape[1] // allowed.shape[1], 1) if allowed.shape[1] > 1 else allowed
        # A softmax over nothing is NaN; these rows attend to everything, and are set to 0 below.
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


def _in_document(inputs: Inputs, document_mask: DocumentMask) -> Tensor:
    """Attend under one mask, for the queries and keys of one document."""
    query, key, value = inputs.tensors
    scale, causal = inputs.options.scale, document_mask.is_causal
    allowed, blind = (None, None) if causal else _dense(document_mask.mask, document_mask.lengths, query.device)
    if causal and scale < torch.finfo(torch.float32).tiny:
        # The trap: under `is_causal` the CPU kernel multiplies its -inf by the scale, which is NaN or +inf then.
        query, scale = query * scale, 1.0
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=allowed,
        dropout_p=inputs.options.dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=inputs.group > 1,
    )
    return output if blind is None else output.masked_fill(blind, 0.0)


@remember(2**28, lambda dense: sum(x.nbytes for x in dense if x is not None))
def _dense(mask: Mask, lengths: Lengths, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the mask as booleans ``[N, M]``, and the rows ``[N, 1]`` that may attend to nothing, or None.

    In the mask those rows attend to everything, since a softmax over nothing is NaN; the caller sets them to 0.
    """
    with torch.inference_mode(False):  # a result that is remembered must serve a training step, too
        allowed = mask.allows(lengths.query_positions(device)[:, None], lengths.key_positions(device)[None, :])
        blind = ~allowed.any(-1, keepdim=True)
        return (allowed | blind, blind) if bool(blind.any()) else (allowed, None)
