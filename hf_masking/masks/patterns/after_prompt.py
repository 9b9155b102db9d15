"""Everything, for the queries after the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..intervals import Intervals
from ..progression import FOREVER
from ..tile import classify
from .prompt import OfPrompt


@dataclass(frozen=True)
class AfterPrompt(OfPrompt):
    """All earlier keys, for the queries after the prompt: ``i >= p`` and ``j <= i``.

    ``window:512|sinks:4|after_prompt`` reads a long prompt through a window, and writes the answer with everything in
    sight.

    Parameters:
        length: number of tokens p of the prompt. By default it comes with the batch, as for `Prompt`.

    ``after_prompt:3``::

        0 0 0 0 0 0
        0 0 0 0 0 0
        0 0 0 0 0 0
        1 1 1 1 0 0
        1 1 1 1 1 0
        1 1 1 1 1 1
    """

    name: ClassVar[str] = "after_prompt"

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q >= self._length()) & (k <= q)

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        empty = (q_lo >= q_hi) | (k_lo >= k_hi)
        return classify(
            empty | (q_hi <= self._length()) | (k_lo >= q_hi), (q_lo >= self._length()) & (k_hi <= q_lo + 1)
        )

    def last_reader(self, k: Tensor) -> Tensor:
        self._length()
        return torch.full_like(k, FOREVER, dtype=torch.long)

    @property
    def lookahead(self) -> int:
        return 0

    def intervals(self, q: Tensor) -> list[Intervals]:
        after = q >= self._length()
        # Rows of the prompt are empty intervals, at a position that exists.
        return [Intervals(torch.where(after, 0, q), torch.where(after, q + 1, q))]
