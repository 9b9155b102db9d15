"""Features: the numbers that weightings compute from hidden states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a layer that the parameters of its mask depend on."""

    hidden_size: int
    query_heads: int
    key_heads: int
    head_size: int


@dataclass(frozen=True, eq=False)
class Features:
    """The features that a weighting computes from the tokens of one call: a few numbers per query, and a few per key.

    query: ``[B, H, N, r]``; B is 1 if all rows of the batch are alike, N is 1 if all queries are.
    key: ``[B, G, M, s]``; None if the weighting needs nothing of the keys.
    hard: small weights count as 0, as in evaluation.
    """

    query: Tensor
    key: Tensor | None = None
    hard: bool = True

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        return self.query, self.key

    def of_queries(self, rows: slice) -> Features:
        """Return the features of some of the queries."""
        return self if self.query.shape[2] == 1 else replace(self, query=self.query[:, :, rows])

    def of_keys(self, columns: Tensor) -> Features:
        """Return the features of some of the keys ``[k]``."""
        return self if self.key is None else replace(self, key=self.key[:, :, columns])


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or better: half precision rounds spans of 1,000 tokens to multiples of 4."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
