"""The keys that a few queries need."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..masks import MaskExpression
from ..plan import Documents


# All layers of a forward that have the same mask ask for the same columns.
@functools.lru_cache(maxsize=4)
def needed_keys(
    mask: MaskExpression, documents: Documents, first: int, stop: int
) -> tuple[Documents, Tensor | None, Tensor | None]:
    """Return what the queries from ``first`` to ``stop`` need under a static mask.

    Returns:
        Their documents, the columns of their keys (None for all), and the pairs that the mask allows among these
        ``[B, heads of the mask, N, M]`` (None for all).
    """
    with torch.inference_mode(False):
        documents = documents.of_queries(slice(first, stop))
        allowed = torch.stack([documents.allows(member) for member in mask.heads], dim=1)
        columns = few(allowed.flatten(0, 2).any(0))
        if columns is not None:
            allowed, documents = allowed[..., columns], documents.of_keys(columns)
        return documents, columns, None if bool(allowed.all()) else allowed


def few(needed: Tensor) -> Tensor | None:
    """Return the needed columns, or None if they are more than half: copying keys costs as much as reading them."""
    return needed.nonzero()[:, 0] if int(needed.sum()) * 2 <= len(needed) else None
