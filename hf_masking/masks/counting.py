"""Count what a mask allows: pairs, their share of the causal ones, and the keys that a cache must retain.

A mask is disjoint pieces (see `intervals`): an interval of keys per query on a lattice, with guards where lattices do
not nest. What passes a guard is counted without asking for single pairs: the guard's mask is disjoint pieces, too, and
the common pairs of two pieces can always be counted. "a without b" has the pairs of a, less those common to both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .intervals import EVERY_KEY, Guard, Intervals, Predicate
from .mask import Mask, MaskExpression
from .progression import Progression

# With more sets of common pairs than this, every single pair is looked at.
_MOST_MEETINGS = 2048
_CHUNK = 2**18  # pairs looked at in one go, so that they stay in the processor's cache


def count_pairs(mask: Mask, length: int) -> int:
    """Return how many pairs the mask allows over ``length`` positions.

    Takes O(length) for each set of common pairs, and O(length²) for a mask that has no intervals or thousands of sets.
    """
    try:
        return _Count(length).of(mask)
    except _UncountableError:
        return sum(int(pairs.sum()) for pairs in _all_pairs(mask, length))


def density(mask: MaskExpression, length: int) -> float:
    """Return the allowed pairs as a share of the causal ones; of masks that differ by head, the mean."""
    return sum(count_pairs(member, length) for member in mask.heads) / len(mask.heads) / (length * (length + 1) / 2)


def keys_kept(mask: MaskExpression, length: int) -> int:
    """Return how many of the first ``length`` keys some query at position ``length`` or later may still read."""
    if mask.selection is not None:
        return length  # every block is scored, even if an intersection then excludes it
    return int((mask.union.last_reader(torch.arange(length)) >= length).sum())


class _UncountableError(Exception):
    """A mask whose pairs no formula counts: without intervals, or with too many sets of common pairs."""


@dataclass(frozen=True, eq=False)
class _Common:
    """For each query the keys in ``[first, stop)`` at multiples of ``stride`` that are in each of ``keys``.

    `Intervals` have a stride or a class of keys and not both; the common pairs of any two of them are one of these.
    """

    first: Tensor
    stop: Tensor
    stride: int = 1
    keys: frozenset[Progression] = frozenset()

    def meet(self, piece: Intervals, length: int) -> _Common:
        lattice = piece.lattice
        # Strides from the length on all leave distance 0 only; the limit keeps the product within an int64.
        stride = min(math.lcm(self.stride, lattice.stride), length)
        keys = self.keys if lattice.keys == EVERY_KEY else self.keys | {lattice.keys}
        return _Common(torch.maximum(self.first, piece.first), torch.minimum(self.stop, piece.stop), stride, keys)

    def count(self, q: Tensor) -> int:
        # The last key before each bound that lies on the stride.
        last, before = (q + (bound - 1 - q) // self.stride * self.stride for bound in (self.stop, self.first))
        real = self.first < self.stop
        if not self.keys:
            return int(((last - before) // self.stride)[real].sum())
        members = torch.stack([keys.contains(q) for keys in self.keys]).all(0).long()
        # For each key the number of members up to and including it, a stride apart.
        padded = torch.cat([members, members.new_zeros(-len(q) % self.stride)])
        running = padded.view(-1, self.stride).cumsum(0).flatten()
        counts = [torch.where(key >= 0, running[key.clamp(min=0)], 0) for key in (last[real], before[real])]
        return int((counts[0] - counts[1]).sum())


class _Count:
    """Counts pairs over as many queries as keys."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.q = torch.arange(length)
        self.meetings = 0

    def of(self, mask: Mask) -> int:
        whole = _Common(torch.zeros_like(self.q), torch.full_like(self.q, self.length))
        return self.in_common(whole, self.pieces(mask), ())

    def in_common(self, pairs: _Common, pieces: Iterable[Intervals], guards: Sequence[Guard]) -> int:
        """Return how many of the pairs are in a piece and pass its guards and these."""
        return sum(self.passing(pairs.meet(piece, self.length), (*piece.guards, *guards)) for piece in pieces)

    def passing(self, pairs: _Common, guards: Sequence[Guard]) -> int:
        self.meetings += 1
        if self.meetings > _MOST_MEETINGS:
            raise _UncountableError
        if not bool((pairs.first < pairs.stop).any()):
            return 0
        if not guards:
            return pairs.count(self.q)
        guard, *others = guards
        seen = self.in_common(pairs, self.pieces(guard.mask), others)
        return seen if guard.wanted else self.passing(pairs, others) - seen

    def pieces(self, mask: Predicate) -> list[Intervals]:
        if not isinstance(mask, Mask):
            raise _UncountableError  # a strip that no lattice describes
        pieces = mask.intervals(self.q)
        if any(guard.mask == mask for piece in pieces for guard in piece.guards):
            raise _UncountableError
        return pieces


def _all_pairs(mask: Mask, length: int) -> Iterator[Tensor]:
    q = torch.arange(length)
    for rows in q.split(max(1, _CHUNK // length)):
        keys = q[: int(rows[-1]) + 1 + mask.lookahead]
        yield mask.allows(rows[:, None], keys)
