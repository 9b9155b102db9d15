"""The base of adaptive masks that give pairs soft weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..masks import Mask
from ..masks.normal_form import NormalForm
from .adaptive_mask import AdaptiveMask
from .features import Features, LayerShape

TILE = 64  # queries, and keys, of the tiles that are skipped if all their weights are 0


@dataclass(frozen=True)
class Weighting(AdaptiveMask):
    """An adaptive mask that multiplies the attention weight of a pair by a factor f from 0 to 1.

    Multiplying the weights of a softmax by f and renormalizing is the same as adding log f to its scores, which is how
    it is computed. A subclass says which parameters compute the features of queries and keys (`module`), and how f
    follows from the features of query i and key j <= i (`log_weight`).

    It is a frozen dataclass with a ``name``, which is its name in specs. The other answers are optional and save time:
    pairs of weight 1 (`certain`), the distance from which on all weights are 0 (`reach`), the tiles with a weight above
    0 (`tiles_that_count`), and which heads share a plan (`plan_keys`). They are asked about one document, with features
    ``[H, N, r]`` and ``[G, M, s]``.
    """

    def normal_form(self) -> NormalForm:
        return NormalForm(weights=(self,), domain=self.envelope)

    def module(self, shape: LayerShape) -> nn.Module:
        """Return the parameters of one layer, a module that computes `Features` from hidden states ``[B, N, hidden]``.

        If it has a method ``penalty(hidden, features)``, that is what `mask_penalties` collects: a number from 0 to 1.
        """
        raise NotImplementedError

    def continues(self, other: Weighting) -> bool:
        """Return whether the parameters of another weighting mean the same here."""
        return self == other

    def log_weight(self, query: Tensor, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        """Return log f for a tile; differentiable.

        Parameters:
            query: features of its queries ``[..., n, r]``.
            key: features of its keys ``[..., m, s]``.
            distance: ``i - j`` of its pairs, integers ``[..., n, m]``.
            hard: as in `Features`.
        """
        raise NotImplementedError

    def certain(self, features: Features, heads: slice) -> Mask | None:
        """Return a static mask whose pairs have weight 1 for all of these query heads; None if none do."""
        return None

    def reach(self, features: Features, heads: slice) -> Tensor | None:
        """Return the distance from which on all weights of these heads are 0, ``[N or 1]`` integers; None for never."""
        return None

    def tiles_that_count(self, features: Features, heads: slice, group: int) -> Tensor | None:
        """Return which tiles have a weight above 0, as booleans ``[queries / TILE, keys / TILE]``.

        These may be too many, but never too few; None if that is not known without computing the weights.
        """
        return None

    def plan_keys(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        """Return a value for each query head; neighbouring heads with equal values share a plan.

        Parameters:
            heads: number of query heads.
            group: how many of them share a key head.
        """
        return [None] * heads

    def reads(self, features: Features) -> Mask:
        """Return the keys that later queries may read, as a static mask: what a cache retains."""
        return self.envelope
