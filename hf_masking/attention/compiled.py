"""Attention in a compiled graph, which does not know the values of tensors while it is made.

A plan is made of values: of where documents start and end. So an operator makes the plan, and runs it, when the graph
runs, and a compiled model pays for the pairs that its mask allows, as any other does. What is dense anyway, such as the
one query of a static cache, the graph computes itself, so that a CUDA graph can record it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import automatic, blockwise, operators, reference, sdpa
from .backends import run


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: str,
    documents: Tensor,
    *,
    backend: str,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Attend under a mask that is not adaptive. Shapes as in `masked_attention`.

    Parameters:
        mask: what `operators.name_of` calls it.
        documents: as `Documents.encode` gives them.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)  # autocast does not reach into an operator
    options: dict[str, Any] = {"scale": scale, "dropout": dropout, "softcap": softcap, "sink_logits": sink_logits}
    if backend == "auto" and automatic.few_pairs(query.shape[2], key.shape[2]):
        backend = "sdpa" if softcap is None and sink_logits is None else "reference"
        _log(mask, backend)
    if backend == "sdpa":
        sdpa.refuse(softcap, sink_logits)
        allowed = operators.allowed(documents, query.shape[1], key.shape[2], mask)
        return sdpa.under_mask(query, key, value, allowed, scale=scale, dropout=dropout)
    if backend == "reference":
        allowed = operators.allowed(documents, query.shape[1], key.shape[2], mask)
        q, k, v = (x.to(blockwise.precision_of(query)) for x in (query, key, value))
        return reference.under_mask(q, k, v, allowed, **options)[0].to(query.dtype)
    inputs = query, key, value, sink_logits, documents
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs if x is not None)
    if not learns and not dropout:
        return operators.attend(*inputs, mask, backend, scale, softcap)
    if backend == "blockwise" or (backend == "auto" and query.device.type != "cuda"):
        seed = torch.randint(2**62, ()) if dropout else None
        output, _ = operators.attend_blockwise(*inputs, seed, mask, scale, dropout, softcap)
        return output.to(query.dtype)
    return _outside(query, key, value, mask, documents, backend, options)


@torch.compiler.assume_constant_result
def _log(mask: str, backend: str) -> None:
    """Log what a graph computes itself, when it is made: it cannot log when it runs."""
    reason = "a compiled graph computes a single query, or so few pairs, densely"
    automatic.log(automatic.Choice(backend, reason), operators.MASKS[mask])


@torch.compiler.disable(
    reason="gradients of this backend are computed outside of the graph; with fullgraph=True use backend='blockwise' "
    "(only what the mask allows) or 'sdpa' (dense)"
)
def _outside(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: str,
    documents: Tensor,
    backend: str,
    options: dict[str, Any],
) -> Tensor:
    described = operators.documents_of(documents, key.shape[2])
    return run(query, key, value, operators.MASKS[mask], described, backend=backend, **options)
