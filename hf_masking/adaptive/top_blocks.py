"""Each query picks the key blocks that score best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .features import at_least_float32
from .selection import Selection

Score = Literal["mean", "minmax"]


@dataclass(frozen=True)
class TopBlocks(Selection):
    """The k completed blocks that score best, for each query and key head, and the block that the query is in.

    ``mean`` scores a block with the product of the query and the mean of its keys (Lu et al., "MoBA",
    https://arxiv.org/abs/2502.13189; its k counts the own block, so it is one more), ``minmax`` with the greatest
    product that a vector between the least and the greatest keys could have (Tang et al., "Quest",
    https://arxiv.org/abs/2406.10774). Query heads that share keys choose together, by the sum of their scores. It has
    no parameters, so it can be put into a pretrained model; training under it adapts the model's queries and keys. With
    k at least the number of blocks it is causal.

    Parameters:
        block: tokens in a block.
        k: completed blocks that a query sees.
        score: ``mean`` or ``minmax``.
    """

    k: int
    score: Score = "minmax"

    name: ClassVar[str] = "top_blocks"

    def __post_init__(self) -> None:
        self._require_int("block", 1)
        self._require_int("k", 1)
        self._require("score", self.score in get_args(Score), " or ".join(get_args(Score)))

    def summarize(self, keys: Tensor) -> Tensor:
        complete = keys.shape[-2] // self.block
        blocks = keys[..., : complete * self.block, :].unflatten(-2, (complete, self.block))
        if self.score == "mean":
            # Half precision would round the mean as well, and another block might be chosen.
            return at_least_float32(blocks).mean(-2)
        return torch.cat([blocks.amax(-2), blocks.amin(-2)], dim=-1)

    def scores(self, queries: Tensor, summaries: Tensor) -> Tensor:
        """Return the score of each block ``[..., n, blocks]`` for queries ``[..., g, n, D]`` of g heads."""
        if self.score == "minmax":
            # The greatest product takes the greatest key where the query is positive, and the least where it is not.
            queries = torch.cat([queries.clamp(min=0), queries.clamp(max=0)], dim=-1)
        # In half precision one choice in eight would be another, and large keys would all be infinite.
        return at_least_float32(queries).sum(-3) @ at_least_float32(summaries).mT

    @torch.no_grad()
    def choose(self, queries: Tensor, summaries: Tensor, positions: Tensor) -> Tensor:
        count = self.completed(summaries, positions)
        # A k greater than the number of blocks costs no more than that number.
        k = min(self.k, max(1, summaries.shape[-2]))
        return self.best(self.scores(queries, summaries[..., :count, :]), positions, k)
