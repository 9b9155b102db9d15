"""Strips: the regular sets of pairs that most masks are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .progression import FOREVER, Progression
from .tile import classify


@dataclass(frozen=True)
class Strip:
    """The pairs (query i, key j) with ``i - j`` in ``distances`` and ``j`` in ``keys``."""

    distances: Progression = field(default_factory=Progression)
    keys: Progression = field(default_factory=Progression)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        allowed = self.distances.contains(q - k)
        return allowed if self.keys == Progression() else allowed & self.keys.contains(k)

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        """Return exact tiles, unless distances and keys both have gaps or ends: then SOME may stand for NONE."""
        size = (q_hi - q_lo).clamp(min=0) * (k_hi - k_lo).clamp(min=0)
        every_key = self.keys.count(k_lo, k_hi) == k_hi - k_lo
        every_distance = self.distances.count(q_lo - k_hi + 1, q_hi - k_lo) == q_hi - k_lo - (q_lo - k_hi + 1)
        first, last = torch.maximum(self.keys.ceil(k_lo), k_lo), torch.minimum(self.keys.floor(k_hi - 1), k_hi - 1)
        none = (size == 0) | (first > last) | (self.distances.count(q_lo - last, q_hi - first) == 0)
        return classify(none, every_key & every_distance)

    def last_reader(self, k: Tensor) -> Tensor:
        greatest = self.distances.greatest()
        if greatest is None:
            return torch.full_like(k, -1, dtype=torch.long)
        last = (k.long() + greatest).clamp(max=FOREVER)
        return torch.where(self.keys.contains(k) & (last >= 0), last, -1)

    @property
    def lookahead(self) -> int:
        least = self.distances.least()
        return 0 if least is None else max(0, -least)
