"""Intervals of keys for each query: the form in which a mask is computed.

For given queries a mask is a few disjoint pieces. A piece is an interval of keys per query, on a lattice, which is a
regular set of pairs: a window has all pairs, a stride those whose distance is a multiple of it, a column those whose
keys are of a class. Union, intersection and difference work on the bounds, elementwise; where two lattices do not nest,
a guard asks the mask itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .progression import FOREVER, Progression
from .strip import Strip

# A mask of more pieces than this counts as irregular, and is computed as one piece with a guard.
MAX_PIECES = 64
EVERY_KEY = Progression()


class TooIrregularError(Exception):
    """A mask that would be cut into more than MAX_PIECES pieces."""


class Predicate(Protocol):
    """A mask or a strip, as a guard asks it."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Lattice:
    """A regular set of pairs: distances ``i - j`` that are multiples of ``stride``, or keys of a class; not both."""

    stride: int = 1
    keys: Progression = EVERY_KEY

    def contains(self, other: Lattice) -> bool:
        """Return whether every pair of ``other`` is in this lattice; False if that is not obvious."""
        return other.stride % self.stride == 0 and self.keys in (EVERY_KEY, other.keys)

    def meet(self, other: Lattice) -> Lattice | None:
        """Return the common pairs; None if they are no lattice."""
        if self.contains(other):
            return other
        if other.contains(self):
            return self
        strides_only = self.keys == other.keys == EVERY_KEY
        return Lattice(math.lcm(self.stride, other.stride)) if strides_only else None


@dataclass(frozen=True)
class Guard:
    """A condition on pairs: that ``mask`` allows them, or that it does not."""

    mask: Predicate
    wanted: bool

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return self.mask.allows(q, k) == self.wanted


@dataclass(frozen=True, eq=False)
class Intervals:
    """For each of N queries the keys of a lattice with ``first <= j < stop`` that pass the guards.

    first, stop: ``[N]`` integer key positions, not clipped to the keys that exist; ``first >= stop`` is empty.
    """

    first: Tensor
    stop: Tensor
    lattice: Lattice = field(default_factory=Lattice)
    guards: tuple[Guard, ...] = ()

    def is_empty(self) -> bool:
        return not bool((self.first < self.stop).any())

    def guarded(self, mask: Predicate, wanted: bool) -> Intervals:
        return replace(self, guards=(*self.guards, Guard(mask, wanted)))

    def clipped(self, first: int, stop: int) -> Intervals:
        """Return the piece without the keys outside of ``[first, stop)``."""
        return replace(self, first=self.first.clamp(first, stop), stop=self.stop.clamp(first, stop))

    def overlaps(self, other: Intervals) -> bool:
        return bool((torch.maximum(self.first, other.first) < torch.minimum(self.stop, other.stop)).any())

    def meet(self, other: Intervals) -> Intervals | None:
        """Return the common pairs; None if these are on no lattice."""
        lattice = self.lattice.meet(other.lattice)
        if lattice is None:
            return None
        first, stop = torch.maximum(self.first, other.first), torch.minimum(self.stop, other.stop)
        return Intervals(first, stop, lattice, (*self.guards, *other.guards))

    def minus(self, other: Intervals) -> list[Intervals] | None:
        """Return the parts before and after ``other``; None if they are no intervals."""
        if other.guards or not other.lattice.contains(self.lattice):
            return None
        empty = other.first >= other.stop
        hole_first = torch.where(empty, self.stop, other.first)
        hole_stop = torch.where(empty, self.stop, other.stop)
        before = replace(self, stop=torch.minimum(self.stop, hole_first))
        after = replace(self, first=torch.maximum(self.first, hole_stop))
        return [piece for piece in (before, after) if not piece.is_empty()]


def of_strip(strip: Strip, q: Tensor) -> Intervals:
    """Return the pairs of a strip for the query positions ``q``."""
    distances, keys = strip.distances, strip.keys
    first, stop = q - (distances.hi - 1), q + (1 - distances.lo)
    first = first.clamp(min=keys.lo) if keys.lo else first
    stop = stop.clamp(max=keys.hi) if keys.hi < FOREVER else stop
    key_class = Progression(period=keys.period, start=keys.start, stop=keys.stop)
    if (distances.start, distances.stop) == (0, 1) and key_class == EVERY_KEY:
        return Intervals(first, stop, Lattice(stride=distances.period))
    piece = Intervals(first, stop, Lattice(keys=key_class))
    # No lattice has gaps in distances and in keys, or distances with several remainders.
    return piece if distances.period == 1 else piece.guarded(strip, True)


def irregular(mask: Predicate, q: Tensor, lookahead: int) -> list[Intervals]:
    """Return any mask as one piece: an interval of all keys that may be allowed, and a guard."""
    return [Intervals(torch.zeros_like(q), q.long() + (1 + lookahead)).guarded(mask, True)]


def limited(pieces: list[Intervals]) -> list[Intervals]:
    """Return the pieces, or raise TooIrregularError if there are more than MAX_PIECES."""
    if len(pieces) > MAX_PIECES:
        raise TooIrregularError(f"{len(pieces)} pieces")
    return pieces


def subtract(pieces: Iterable[Intervals], removed: Sequence[Intervals], mask: Predicate) -> list[Intervals]:
    """Return the pairs of ``pieces`` that ``mask``, whose pieces are ``removed``, does not allow.

    Raises:
        TooIrregularError: these are more than MAX_PIECES pieces.
    """
    result: list[Intervals] = []
    for piece in pieces:
        rest: list[Intervals] | None = [piece]
        for hole in removed:
            if rest is not None and piece.overlaps(hole):
                rest = _without(rest, hole)
            if rest is not None:
                limited(rest)
        result.extend([piece.guarded(mask, False)] if rest is None else rest)
    return limited(result)


def _without(pieces: Iterable[Intervals], hole: Intervals) -> list[Intervals] | None:
    result: list[Intervals] = []
    for piece in pieces:
        rest = piece.minus(hole)
        if rest is None:
            return None
        result.extend(rest)
    return result


def intersect(pieces: Iterable[Intervals], others: Sequence[Intervals], mask: Predicate) -> list[Intervals]:
    """Return the common pairs of ``pieces`` and of ``mask``, whose pieces are ``others``."""
    result: list[Intervals] = []
    for piece in pieces:
        meetings = [piece.meet(other) for other in others if piece.overlaps(other)]
        whole = [meeting for meeting in meetings if meeting is not None]
        if len(whole) < len(meetings):
            whole = [piece.guarded(mask, True)]
        result.extend(meeting for meeting in whole if not meeting.is_empty())
    return result
