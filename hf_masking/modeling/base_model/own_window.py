"""The window that a model has itself (Mistral, Gemma, gpt-oss), and how every mask meets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...masks import FOREVER, Mask
from ...masks.patterns.row_interval import RowInterval

_MOST_KEYS = 2**17  # that are looked at for what a window clips


@dataclass(frozen=True)
class OwnWindow(RowInterval):
    """The keys less than ``window`` positions before the query, and every key after it: ``i - j < window``.

    A layer with a window of its own runs under ``mask & OwnWindow(window)``, whatever the mask: the window limits how
    far back a query sees, and says nothing about keys ahead of it. So the bidirectional part of a prefix, a span or
    ``block_causal`` loses the pairs that lie too far back and no others, and a causal mask is clipped as by ``window``.

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
        """Whether it takes pairs from a bound mask, in texts of so many positions."""
        keys = torch.arange(min(positions, _MOST_KEYS), device="cpu")
        return bool((mask.last_reader(keys).clamp(max=positions - 1) > self.last_reader(keys)).any())
