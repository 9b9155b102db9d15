"""The weight of a pair is computed from its two tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, pad

from .features import Features, LayerShape, at_least_float32
from .weighting import TILE, Weighting

_OPEN = 8.0  # all scores at the start: sigmoid(8) = 0.9997
_FAR = 1e30  # padding after the last key, smaller or greater than every feature
_ROWS = 16 * TILE  # queries whose scores are bounded together
_SAMPLES = 8  # keys per query from which the penalty is estimated


@dataclass(frozen=True)
class Relevance(Weighting):
    """``f(i, j) = sigmoid((A h_i) . (B h_j) / sqrt(rank) + b)``, learned for each key head.

    In training it is soft and takes time O(N^2) and memory O(N). In evaluation pairs below the threshold are excluded
    (a token always sees itself), and tiles of such pairs are not computed. It starts with f > 0.999. This is the
    definition of content-based masking taken literally; there is no paper.

    Parameters:
        rank: features per token and key head; at most the hidden size of the model.
        threshold: weights below this are 0 in evaluation.
    """

    rank: int = 16
    threshold: float = 0.01

    name: ClassVar[str] = "relevance"

    def __post_init__(self) -> None:
        self._require_int("rank", 1)
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        self._require("threshold", number and 0 <= self.threshold < 0.5, "a number from 0 to below 0.5")
        object.__setattr__(self, "threshold", float(self.threshold))

    def module(self, shape: LayerShape) -> nn.Module:
        return _Relevance(self, shape)

    def continues(self, other: Weighting) -> bool:
        return isinstance(other, Relevance) and self.rank == other.rank

    def log_weight(self, query: Tensor, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        assert key is not None
        scores = query @ key.mT
        weight = logsigmoid(scores)
        if not hard:
            return weight
        return weight.masked_fill((scores < self.lowest_score) & (distance != 0), -torch.inf)

    def tiles_that_count(self, features: Features, heads: slice, group: int) -> Tensor | None:
        if not features.hard or not self.threshold:
            return None
        assert features.key is not None
        # Heads that share a key head have the same features.
        query, key = features.query[heads.start].detach(), features.key[heads.start // group].detach()
        tiles = [pad(key, (0, 0, 0, -len(key) % TILE), value=end).unflatten(0, (-1, TILE)) for end in (-_FAR, _FAR)]
        greatest, least = tiles[0].amax(1), tiles[1].amin(1)
        # In chunks of queries: all queries times all tiles of keys would be N^2 / TILE numbers.
        highest = torch.cat([_highest(rows, greatest, least) for rows in query.split(_ROWS)])
        # The margin keeps a rounding error from dropping a pair. Each query's own tile is always kept.
        wanted = highest >= self.lowest_score - 1e-3
        return wanted | _own_tiles(len(query), len(key), query.device)

    @property
    def lowest_score(self) -> float:
        """The score whose weight is the threshold."""
        return math.log(self.threshold) - math.log1p(-self.threshold) if self.threshold else -math.inf

    def plan_keys(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        return [head // group for head in range(heads)] if features.hard and self.threshold else [None] * heads


def _highest(query: Tensor, greatest: Tensor, least: Tensor) -> Tensor:
    """Return an upper bound of the products of queries ``[n, r]`` and keys in each tile ``[n / TILE, tiles]``.

    Parameters:
        greatest, least: of each feature among the keys of each tile ``[tiles, r]``.
    """
    # No key between the least and the greatest has a greater product.
    highest = query.clamp(min=0) @ greatest.mT + query.clamp(max=0) @ least.mT
    return pad(highest, (0, 0, 0, -len(query) % TILE), value=-torch.inf).unflatten(0, (-1, TILE)).amax(1)


def _own_tiles(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return the tiles in which the queries, which are the last positions, see themselves."""
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
        # One factor starts with 0, as in low-rank adapters, so that the product does.
        self.query = nn.Parameter(torch.randn(self.heads * self.rank, shape.hidden_size) * shape.hidden_size**-0.5)
        self.key = nn.Parameter(torch.zeros(self.heads * self.rank, shape.hidden_size))
        # The bias is learned in units of its start value: in units of 1 it would take 1,000 steps to close.
        self.bias = nn.Parameter(torch.ones(self.heads))

    def forward(self, hidden: Tensor) -> Features:
        hidden = at_least_float32(hidden)
        query, key = (self._project(hidden, weight) for weight in (self.query, self.key))
        # The bias is one more feature of the query, and the key's is 1.
        bias = self.bias.to(hidden).mul(_OPEN)[:, None, None].expand(*query.shape[:-1], 1)
        query = torch.cat([query * self.rank**-0.5, bias], dim=-1).repeat_interleave(self.group, dim=1)
        return Features(query, torch.cat([key, torch.ones_like(key[..., :1])], dim=-1), hard=not self.training)

    def _project(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return ``[B, G, N, rank]``."""
        return linear(hidden, weight.to(hidden)).unflatten(-1, (self.heads, self.rank)).transpose(1, 2)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """Return the mean weight of a pair, estimated from some random keys of each query.

        The mean is over all pairs of a row, including padding, other packed documents and what another mask excludes.
        """
        query, key = features.query, features.key
        assert key is not None
        query = query[:, :: self.group]
        n = query.shape[2]
        rows = torch.arange(n, device=query.device)[:, None]
        columns = (torch.rand(n, _SAMPLES, device=query.device) * (rows + 1)).long()
        scores = (query[:, :, :, None] * key[:, :, columns]).sum(-1)
        # Each query counts as often as it has pairs.
        return (scores.sigmoid().mean(-1) * (rows[:, 0] + 1)).mean() * (2 / (n + 1))
