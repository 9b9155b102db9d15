"""The plan of one mask for given lengths: disjoint parts, each with one fast way of computing it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ..masks import Causal, Mask
from ..masks.intervals import Intervals, Lattice
from .blocks import Blocks
from .cutting import blocks_of
from .diagonals import Diagonals, diagonals_of
from .layout import Lengths
from .memory import remember

Part = Blocks | Diagonals
_MOST_BYTES = 2**28  # of all plans that are remembered


@dataclass(frozen=True, eq=False)
class Plan:
    """Disjoint parts of a mask; their partial results are merged by their log-sum-exps."""

    mask: Mask
    lengths: Lengths
    parts: tuple[Part, ...]

    @property
    def touched(self) -> int:
        """Pairs that are computed for each head."""
        return sum(part.touched for part in self.parts)

    @functools.cached_property
    def cost(self) -> float:
        """Time for each head, see `cost_model`."""
        return sum(part.cost for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return sum(part.nbytes for part in self.parts)


@remember(_MOST_BYTES, lambda plan: plan.nbytes)
def plan_of(mask: Mask, lengths: Lengths) -> Plan:
    """Return the cheapest way found to compute a mask; remembered, since every layer and step asks for the same.

    It takes arithmetic on a few numbers per query, O(N), never on pairs.
    """
    diagonals: list[Diagonals] = []
    parts: list[Part] = []
    for piece in pieces_of(mask, lengths):
        single = diagonals_of(piece, lengths)
        blocks = None if single is not None and single.is_cheapest else blocks_of(piece, lengths)
        if single is not None and (blocks is None or single.cost < blocks.cost):
            diagonals.append(single)
        elif blocks is not None:
            parts.append(blocks)
    if diagonals:
        parts.append(Diagonals(tuple(diagonal for single in diagonals for diagonal in single.diagonals)))
    return Plan(mask, lengths, tuple(parts))


def pieces_of(mask: Mask, lengths: Lengths) -> list[Intervals]:
    """Return the mask as intervals for these queries, clipped to these keys, without empty ones."""
    pieces = [piece.clipped(lengths.first_key, lengths.stop_key) for piece in mask.intervals(lengths.query_positions())]
    return [piece for piece in pieces if not piece.is_empty()]


@functools.lru_cache(maxsize=1024)
def is_causal(mask: Mask, lengths: Lengths) -> bool:
    """Return whether the mask is all of causal over these lengths, as a window is that is long enough.

    False unless there are as many queries as keys: `is_causal` of PyTorch starts at the first key.
    """
    if (lengths.first_query, lengths.queries) != (lengths.first_key, lengths.keys) or lengths.gaps:
        return False
    pieces = pieces_of(mask, lengths)
    if len(pieces) != 1 or pieces[0].guards or pieces[0].lattice != Lattice():
        return False
    (causal,) = pieces_of(Causal(), lengths)
    return torch.equal(pieces[0].first, causal.first) and torch.equal(pieces[0].stop, causal.stop)
