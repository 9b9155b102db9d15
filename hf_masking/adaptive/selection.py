"""The base of adaptive masks that pick key blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..masks import BlockLocal, Mask
from ..masks.normal_form import NormalForm
from .adaptive_mask import AdaptiveMask


@dataclass(frozen=True)
class Selection(AdaptiveMask):
    """An adaptive mask in which each query picks blocks of keys; it always sees the block that it is in.

    A subclass says what is kept of completed blocks (`summarize`) and which of them a query picks (`choose`). Both see
    nothing but the layer's own queries and keys, so a selection has no parameters. Blocks count positions in the
    document, and only completed blocks are picked: what a token sees never depends on what comes after it. Query heads
    that share keys choose together.

    It is a frozen dataclass with a ``name``, which is its name in specs.

    Parameters:
        block: tokens in a block.
    """

    block: int

    def normal_form(self) -> NormalForm:
        return NormalForm(selection=self, domain=self.envelope)

    @property
    def own_block(self) -> Mask:
        """The pairs that need no choice: the keys in the query's own block."""
        return BlockLocal(self.block)

    def summarize(self, keys: Tensor) -> Tensor:
        """Return what is kept of the completed blocks ``[..., blocks, s]`` of a document's keys ``[..., n, D]``."""
        raise NotImplementedError

    def choose(self, queries: Tensor, summaries: Tensor, positions: Tensor) -> Tensor:
        """Return the completed blocks that each query picks, in any order ``[..., n, c]``; -1 where there are fewer.

        Parameters:
            queries: ``[..., g, n, D]``, of the g heads that choose together.
            summaries: of the completed blocks ``[..., blocks, s]``; some may be completed later than a query.
            positions: of the queries ``[..., n]``.
        """
        raise NotImplementedError

    def completed(self, summaries: Tensor, positions: Tensor) -> int:
        """Return the number of blocks that are completed for some query; the others need no score."""
        return min(summaries.shape[-2], int(positions.max()) // self.block if positions.numel() else 0)

    def best(self, scores: Tensor, positions: Tensor, k: int) -> Tensor:
        """Return the k completed blocks that score highest for each query ``[..., n, k]``; -1 where there are fewer.

        Of equal scores it takes the later blocks, so that a choice does not depend on how many blocks there are.

        Parameters:
            scores: ``[..., n, completed]``, changed in place.
            positions: of the queries ``[..., n]``.
        """
        count = scores.shape[-1]
        incomplete = torch.arange(count, device=scores.device) >= (positions // self.block)[..., None]
        scores.masked_fill_(incomplete, -torch.inf)
        # One more than is wanted shows whether the last one wanted is tied.
        found = scores.topk(min(k + 1, count))
        chosen = torch.where(found.values == -torch.inf, -1, found.indices)
        if k < count:
            _settle_ties(scores, found.values, chosen)
        chosen = chosen[..., :k]
        return pad(chosen, (0, k - chosen.shape[-1]), value=-1)


def _settle_ties(scores: Tensor, best: Tensor, chosen: Tensor) -> None:
    """Correct ``chosen`` in place where the first block that is left out scores as high as the last one taken.

    Parameters:
        best: the best scores, and one more ``[..., k + 1]``.
    """
    tied = (best[..., -1] == best[..., -2]) & (best[..., -1] > -torch.inf)
    if bool(tied.any()):
        order = scores[tied].flip(-1).argsort(dim=-1, descending=True, stable=True)
        chosen[tied] = scores.shape[-1] - 1 - order[:, : chosen.shape[-1]]
