"""The sliding window that a model has itself (Mistral, Gemma, gpt-oss), as a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...masks import FOREVER, Mask
from ...masks.patterns.row_interval import RowInterval

_MOST_KEYS = 2**17  # number of keys for which `clips` compares last readers


@dataclass(frozen=True)
class OwnWindow(RowInterval):
    """The keys less than ``window`` positions before the query, and every key after it: ``i - j < window``.

    A layer with its own window runs under ``mask & OwnWindow(window)``. The window limits how far back a query sees,
    and not how far ahead. So the bidirectional part of a prefix, a span or ``block_causal`` loses the pairs that lie
    too far back and no others, and a causal mask is clipped as by ``window``.

    Parameters:
        window: number of keys up to the query, which is one of them, at least 1.
    """

    window: int

    name: ClassVar[str] = "own_window"  # as messages print it; no spec has it

    def first_key(self, q: Tensor) -> Tensor:
        return q - (self.window - 1)

    def last_key(self, q: Tensor) -> Tensor:
        # One less than FOREVER: the end of the interval must fit into an int32, too.
        return torch.full_like(q, FOREVER - 1)

    def first_reader(self, k: Tensor) -> Tensor:
        return torch.zeros_like(k)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return q - k < self.window

    def last_reader(self, k: Tensor) -> Tensor:
        return (k.long() + (self.window - 1)).clamp(max=FOREVER)

    @property
    def lookahead(self) -> int:
        return FOREVER

    def clips(self, mask: Mask, positions: int) -> bool:
        """Return whether the window removes pairs from a mask, in texts with so many positions."""
        keys = torch.arange(min(positions, _MOST_KEYS), device="cpu")
        return bool((mask.last_reader(keys).clamp(max=positions - 1) > self.last_reader(keys)).any())
