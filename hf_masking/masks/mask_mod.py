"""Masks as functions for PyTorch's FlexAttention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from .intervals import Predicate

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@functools.lru_cache(maxsize=64)
def as_graph(mask: Predicate, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``mask.allows`` as a graph of tensor operations, since the compiler does not look into a mask's objects.

    One graph serves all batches: a new one would be a new type to the compiler, which would compile again.
    """
    # Two tensors, since the tracer would take the same one given twice for a single input.
    q, k = (torch.zeros((), dtype=torch.int32, device=device) for _ in range(2))
    graph: Callable[[Tensor, Tensor], Tensor] = make_fx(lambda q, k: mask.allows(q, k))(q, k)
    return graph


def mask_mod(heads: Sequence[Predicate], n_heads: int | None, device: torch.device) -> MaskMod:
    """Return the function of batch, head, query and key index that FlexAttention asks which pairs are allowed.

    Parameters:
        heads: the masks of the groups of query heads, in order.
        n_heads: number of query heads, needed if there is more than one group.
    """
    graphs = [as_graph(mask, device) for mask in heads]
    if len(graphs) == 1:
        return lambda batch, head, query, key: graphs[0](query, key)
    if n_heads is None or n_heads % len(graphs):
        raise ValueError(
            f"a mask for {len(graphs)} groups of heads needs the number of query heads, a multiple of {len(graphs)}, "
            f"got {n_heads}; write mask.mask_mod(n_heads={4 * len(graphs)})"
        )
    size = n_heads // len(graphs)

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        members = [(head // size == index) & graph(query, key) for index, graph in enumerate(graphs)]
        return functools.reduce(torch.logical_or, members)

    return allowed
