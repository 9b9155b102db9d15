"""Causal between blocks, bidirectional inside a block."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..progression import FOREVER
from .row_interval import RowInterval


@dataclass(frozen=True)
class BlockCausal(RowInterval):
    """The query's block and every block before it: ``i // b >= j // b``.

    It is bidirectional inside a block, so it has **lookahead** b - 1: no autoregressive perplexity and no generation.
    Its causal part, ``block_causal:64&causal``, is all of ``causal``; "block masking" of language models usually
    means ``block_local``. Arriola et al., "Block Diffusion" (https://arxiv.org/abs/2503.09573).

    Parameters:
        block_size: tokens in a block, at least 1.

    ``block_causal:2``::

        1 1 0 0 0 0
        1 1 0 0 0 0
        1 1 1 1 0 0
        1 1 1 1 0 0
        1 1 1 1 1 1
        1 1 1 1 1 1
    """

    block_size: int

    name: ClassVar[str] = "block_causal"

    def __post_init__(self) -> None:
        self._require_int("block_size", 1)

    def first_key(self, q: Tensor) -> Tensor:
        return torch.zeros_like(q)

    def last_key(self, q: Tensor) -> Tensor:
        return q.long() - q % self.block_size + (self.block_size - 1)

    def first_reader(self, k: Tensor) -> Tensor:
        return k - k % self.block_size

    def last_reader(self, k: Tensor) -> Tensor:
        return torch.full_like(k, FOREVER, dtype=torch.long)

    @property
    def lookahead(self) -> int:
        return self.block_size - 1
