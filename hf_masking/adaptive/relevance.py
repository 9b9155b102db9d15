"""The weight of a pair is learned from the two tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, pad

from .adaptive_mask import TILE, AdaptiveMask, Features, LayerShape, at_least_float32

_OPEN = 8.0  # what the scores start with: sigmoid(8) = 0.9997
_FAR = 1e30  # stands for a key that is not there
_ROWS = 16 * TILE  # queries that are held against all keys together
_SAMPLES = 8  # keys for each query from which the density is estimated


@dataclass(frozen=True)
class Relevance(AdaptiveMask):
    """``f(i, j) = sigmoid((A h_i) . (B h_j) / sqrt(rank) + b)``, learned for each key head.

    Soft where it is learned, in time O(N^2) and memory O(N); in evaluation pairs below the threshold are left out (a
    token always sees itself), and whole tiles of such pairs are not computed. It starts with f > 0.999. The definition
    of content-based masking taken literally; no paper.

    Parameters:
        rank: numbers that are learned of each token; at most the hidden size of the model.
        threshold: in evaluation a weight below this is 0.
    """

    rank: int = 16
    threshold: float = 0.01

    name: ClassVar[str] = "relevance"
    reads_keys: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._require_int("rank", 1)
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        self._require("threshold", number and 0 <= self.threshold < 0.5, "a number from 0 to below 0.5")
        object.__setattr__(self, "threshold", float(self.threshold))

    def module(self, shape: LayerShape) -> nn.Module:
        return _Relevance(self, shape)

    def continues(self, other: AdaptiveMask) -> bool:
        return isinstance(other, Relevance) and self.rank == other.rank

    def log_weight(self, query: Tensor | None, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        assert query is not None
        assert key is not None
        scores = query @ key.mT
        weight = logsigmoid(scores)
        if not hard:
            return weight
        return weight.masked_fill((scores < self.lowest_score) & (distance != 0), -torch.inf)

    def tiles_that_count(self, features: Features, heads: slice, group: int) -> Tensor | None:
        if not features.hard or not self.threshold:
            return None
        assert features.query is not None
        assert features.key is not None
        # Heads that share a key head have the same features.
        query, key = features.query[heads.start].detach(), features.key[heads.start // group].detach()
        tiles = [pad(key, (0, 0, 0, -len(key) % TILE), value=end).unflatten(0, (-1, TILE)) for end in (-_FAR, _FAR)]
        greatest, least = tiles[0].amax(1), tiles[1].amin(1)
        # Some rows at a time: all of them against the tiles of all keys would be N^2 / TILE numbers.
        highest = torch.cat([_highest(rows, greatest, least) for rows in query.split(_ROWS)])
        # Behind this a rounding error is no pair that is lost. The last tiles hold each token's own key.
        wanted = highest >= self.lowest_score - 1e-3
        return wanted | _own_tiles(len(query), len(key), query.device)

    @property
    def lowest_score(self) -> float:
        """The score whose weight is the threshold."""
        return math.log(self.threshold) - math.log1p(-self.threshold) if self.threshold else -math.inf

    def lanes(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        return [head // group for head in range(heads)] if features.hard and self.threshold else [None] * heads


def _highest(query: Tensor, greatest: Tensor, least: Tensor) -> Tensor:
    """A bound of the products of queries ``[q, r]`` and keys in each tile ``[q / TILE, tiles]``.

    Parameters:
        greatest, least: each feature of the keys of each tile ``[tiles, r]``.
    """
    # No product with a key between these two is greater.
    highest = query.clamp(min=0) @ greatest.mT + query.clamp(max=0) @ least.mT
    return pad(highest, (0, 0, 0, -len(query) % TILE), value=-torch.inf).unflatten(0, (-1, TILE)).amax(1)


def _own_tiles(queries: int, keys: int, device: torch.device) -> Tensor:
    """The tiles in which the queries, which are the last positions, see themselves."""
    tiles = torch.zeros(-(-queries // TILE), -(-keys // TILE), dtype=torch.bool, device=device)
    q = torch.arange(queries, device=device)
    tiles[q // TILE, (q + keys - queries) // TILE] = True
    return tiles


class _Relevance(nn.Module):
    def __init__(self, mask: Relevance, shape: LayerShape) -> None:
        super().__init__()
        if mask.rank > shape.hidden_size:
            raise ValueError(
                f"relevance: `rank` must be at most {shape.hidden_size}, the hidden size of the model, got {mask.rank}"
            )
        self.heads, self.group, self.rank = shape.key_heads, shape.query_heads // shape.key_heads, mask.rank
        # As in low-rank adapters one of the two starts with 0, so that their product does.
        self.query = nn.Parameter(torch.randn(self.heads * self.rank, shape.hidden_size) * shape.hidden_size**-0.5)
        self.key = nn.Parameter(torch.zeros(self.heads * self.rank, shape.hidden_size))
        # In units of where it starts: in single units it would take a thousand steps to close.
        self.bias = nn.Parameter(torch.ones(self.heads))

    def forward(self, hidden: Tensor) -> Features:
        hidden = at_least_float32(hidden)
        query, key = (self._project(hidden, weight) for weight in (self.query, self.key))
        # The bias travels as one feature more, and meets a 1.
        bias = self.bias.to(hidden).mul(_OPEN)[:, None, None].expand(*query.shape[:-1], 1)
        query = torch.cat([query * self.rank**-0.5, bias], dim=-1).repeat_interleave(self.group, dim=1)
        return Features(query, torch.cat([key, torch.ones_like(key[..., :1])], dim=-1), hard=not self.training)

    def _project(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """``[B, Hkv, N, rank]``."""
        return linear(hidden, weight.to(hidden)).unflatten(-1, (self.heads, self.rank)).transpose(1, 2)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """The mean weight of a pair, estimated from some random keys of each query.

        Of all pairs of a row: padding, packed neighbours and what another mask excludes are counted, too.
        """
        query, key = features.query, features.key
        assert query is not None
        assert key is not None
        query = query[:, :: self.group]
        n = query.shape[2]
        rows = torch.arange(n, device=query.device)[:, None]
        columns = (torch.rand(n, _SAMPLES, device=query.device) * (rows + 1)).long()
        scores = (query[:, :, :, None] * key[:, :, columns]).sum(-1)
        # A query weighs as many pairs as it has.
        return (scores.sigmoid().mean(-1) * (rows[:, 0] + 1)).mean() * (2 / (n + 1))
