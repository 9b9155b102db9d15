"""The base of masks in which each query sees one interval of keys, whose ends never move left."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..intervals import Intervals
from ..pattern import Pattern
from ..tile import classify


@dataclass(frozen=True)
class RowInterval(Pattern):
    """Query i sees the keys from ``first_key(i)`` to ``last_key(i)``; both never decrease, and i is among them."""

    def first_key(self, q: Tensor) -> Tensor:
        raise NotImplementedError

    def last_key(self, q: Tensor) -> Tensor:
        raise NotImplementedError

    def first_reader(self, k: Tensor) -> Tensor:
        """Return the smallest query position that sees key k."""
        raise NotImplementedError

    def intervals(self, q: Tensor) -> list[Intervals]:
        return [Intervals(self.first_key(q), self.last_key(q) + 1)]

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (k >= self.first_key(q)) & (k <= self.last_key(q))

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        first_row, last_row, first_key, last_key = q_lo, q_hi - 1, k_lo, k_hi - 1
        # Among the rows that reach the first key, the first one looks back furthest.
        row = torch.maximum(first_row, self.first_reader(first_key))
        none = (row > last_row) | (self.first_key(row) > last_key) | (first_key > last_key)
        every = (self.first_key(last_row) <= first_key) & (self.last_key(first_row) >= last_key)
        return classify(none, every)
