"""Attention in a compiled graph, where the values of tensors are unknown.

A plan depends on values: on where documents start and end. So an operator makes the plan, and runs it, when the graph
runs, and a compiled model pays for the pairs that its mask allows, as any other does. The graph itself computes what is
dense anyway, such as the single query of a static cache, so that a CUDA graph can record it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends, operators, reference, sdpa
from .blockwise import precision_of
from .choice import Choice, choose_in_graph, log
from .dispatch import run
from .inputs import Inputs, Options


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: str, documents: Tensor, *, backend: str, **options: Any
) -> Tensor:
    """Attend under a mask that is not adaptive. Shapes and options are as in `masked_attention`.

    Parameters:
        mask: the name that `operators.name_of` gives it.
        documents: as `Documents.encode` returns them.
    """
    given = Options(**options)
    key, value = key.to(query.dtype), value.to(query.dtype)  # autocast does not reach into an operator
    tensors = [query, key, value, given.sink_logits, documents]
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors if x is not None)
    if backend == "auto":
        n_queries, n_keys, device = query.shape[2], key.shape[2], query.device.type
        choice = choose_in_graph(n_queries, n_keys, given, needs_gradients=learns, device=device)
        if choice is not None:
            backend = choice.backend
            _log(mask, choice.backend, choice.reason)
    if backend in ("sdpa", "reference"):
        allowed = operators.allowed(documents, query.shape[1], key.shape[2], mask)
        return _densely(query, key, value, allowed, given, backend)
    if not learns and not given.dropout:
        return operators.attend(tensors, mask, backend, given.scale, given.softcap)
    if backend == "blockwise":
        seed = torch.randint(2**62, ()) if given.dropout else None
        numbers = operators.as_numbers(given)
        output, _ = operators.attend_blockwise(query, key, value, given.sink_logits, documents, seed, mask, numbers)
        return output.to(query.dtype)
    return _outside(query, key, value, mask, documents, backend, given)


def _densely(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, options: Options, backend: str) -> Tensor:
    if backend == "sdpa":
        if reason := backends.unsupported(backend, options):
            raise ValueError(backends.refusal(backend, reason, ["'reference'", "'blockwise'"]))
        return sdpa.under_mask(query, key, value, allowed, scale=options.scale, dropout=options.dropout)
    q, k, v = (x.to(precision_of(query)) for x in (query, key, value))
    return reference.under_mask(q, k, v, allowed, options)[0].to(query.dtype)


@torch.compiler.assume_constant_result
def _log(mask: str, backend: str, reason: str) -> None:
    """Log a choice when the graph is made: it cannot log when it runs."""
    log(Choice(backend, reason), operators.MASKS[mask])


@torch.compiler.disable(
    reason="gradients of this backend are computed outside of the graph; with fullgraph=True use backend='blockwise' "
    "(only what the mask allows) or 'sdpa' (dense)"
)
def _outside(
    query: Tensor, key: Tensor, value: Tensor, mask: str, documents: Tensor, backend: str, options: Options
) -> Tensor:
    described = operators.documents_of(documents, key.shape[2])
    return run(Inputs(query, key, value, operators.MASKS[mask], described, options), backend)
