"""Each query chooses the blocks of keys that it wants to see."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..masks import BlockLocal, Mask
from .adaptive_mask import AdaptiveMask, Features, LayerShape, at_least_float32

Score = Literal["mean", "minmax"]


@dataclass(frozen=True)
class TopBlocks(AdaptiveMask):
    """The k completed blocks that score best, for each query and key head, and the block that the query is in.

    ``mean`` scores a block with the product of the query and the mean of its keys (Lu et al., "MoBA",
    https://arxiv.org/abs/2502.13189; its k counts the own block, so it is one more), ``minmax`` with the greatest
    product that a vector between the least and the greatest keys could have (Tang et al., "Quest",
    https://arxiv.org/abs/2406.10774). Query heads that share keys choose together, by the sum of their scores. Nothing
    is learned but through what is seen, so it can be put into a pretrained model as it is.

    Blocks count positions in the document, a block is chosen by single queries, and only when it is complete: what a
    token sees never depends on what comes behind it. With k at least the number of blocks it is causal.

    Parameters:
        block: tokens in a block.
        k: completed blocks that a query sees.
        score: ``mean`` or ``minmax``.
    """

    block: int
    k: int
    score: Score = "minmax"

    name: ClassVar[str] = "top_blocks"
    selects: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._require_int("block", 1)
        self._require_int("k", 1)
        self._require("score", self.score in get_args(Score), " or ".join(get_args(Score)))

    def module(self, shape: LayerShape) -> nn.Module:
        return _Nothing()

    def certain(self, features: Features, heads: slice) -> Mask | None:
        return BlockLocal(self.block)

    def lanes(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        return [head // group for head in range(heads)]

    def summaries(self, keys: Tensor) -> Tensor:
        """What is kept of the completed blocks ``[..., blocks, s]`` of a document's keys ``[..., n, D]``."""
        complete = keys.shape[-2] // self.block
        blocks = keys[..., : complete * self.block, :].unflatten(-2, (complete, self.block))
        if self.score == "mean":
            # In half precision the mean would be rounded as well, and the choice be another.
            return at_least_float32(blocks).mean(-2)
        return torch.cat([blocks.amax(-2), blocks.amin(-2)], dim=-1)

    def scores(self, queries: Tensor, summaries: Tensor) -> Tensor:
        """``[..., n, blocks]`` for queries ``[..., g, n, D]`` of g heads that choose together."""
        if self.score == "minmax":
            # The greatest product takes the greatest key where the query is positive, and the least where it is not.
            queries = torch.cat([queries.clamp(min=0), queries.clamp(max=0)], dim=-1)
        # In half precision one choice in eight would be another, and large keys would all be infinite.
        return at_least_float32(queries).sum(-3) @ at_least_float32(summaries).mT

    @torch.no_grad()
    def choose(self, queries: Tensor, summaries: Tensor, positions: Tensor) -> Tensor:
        """The completed blocks that are chosen, in any order ``[..., n, c]``; -1 where there are fewer.

        c is k, or the number of blocks if that is less (but 1 at least): what k asks for beyond it costs nothing.

        Parameters:
            queries: ``[..., g, n, D]``.
            summaries: of the completed blocks ``[..., blocks, s]``.
            positions: of the queries ``[..., n]``.
        """
        complete = positions // self.block
        # Blocks that are complete for none of the queries are not scored.
        count = min(summaries.shape[-2], int(complete.max()) if complete.numel() else 0)
        scores = self.scores(queries, summaries[..., :count, :])
        scores.masked_fill_(torch.arange(count, device=scores.device) >= complete[..., None], -torch.inf)
        # One more than is wanted, to see whether it is as good.
        best = scores.topk(min(self.k + 1, count))
        chosen = torch.where(best.values == -torch.inf, -1, best.indices)
        if self.k < count:
            self._settle_ties(scores, best.values, chosen)
        chosen = chosen[..., : self.k]
        wanted = min(self.k, max(1, summaries.shape[-2]))
        return pad(chosen, (0, wanted - chosen.shape[-1]), value=-1)

    def _settle_ties(self, scores: Tensor, best: Tensor, chosen: Tensor) -> None:
        """Of equal scores takes the later blocks, so that a choice does not depend on how many there are.

        Parameters:
            best: the best scores, and one more ``[..., k + 1]``.
            chosen: the blocks, corrected in place.
        """
        tied = (best[..., -1] == best[..., -2]) & (best[..., -1] > -torch.inf)
        if bool(tied.any()):
            order = scores[tied].flip(-1).argsort(dim=-1, descending=True, stable=True)
            chosen[tied] = scores.shape[-1] - 1 - order[:, : self.k + 1]


class _Nothing(nn.Module):
    def forward(self, hidden: Tensor) -> Features:
        return Features()
