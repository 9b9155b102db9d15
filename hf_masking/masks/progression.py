"""Regular sets of integers: an interval, and inside it the remainders that count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Positions and distances are below this number, so it stands for "no bound" and still fits into an int32.
FOREVER = 2**31 - 1


@dataclass(frozen=True)
class Progression:
    """The integers x with ``lo <= x < hi`` and ``start <= x mod period < stop``.

    The default is everything from 0 on. ``Progression(period=64, stop=1)`` are the multiples of 64. Closed under
    intersection and difference as far as one period can say it; where it cannot, those answer None.
    """

    lo: int = 0
    hi: int = FOREVER
    period: int = 1
    start: int = 0
    stop: int = -1  # up to the period

    def __post_init__(self) -> None:
        start, stop = self.start, self.period if self.stop == -1 else self.stop
        # One set, one value: no remainders is an empty interval, all of them is period 1.
        if start >= stop:
            object.__setattr__(self, "hi", self.lo)
        if start >= stop or stop - start == self.period:
            object.__setattr__(self, "period", 1)
            start, stop = 0, 1
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)

    def contains(self, x: Tensor) -> Tensor:
        inside = x >= self.lo
        if self.hi < FOREVER:
            inside = inside & (x < self.hi)
        if self.period > 1:
            remainder = x % self.period
            inside = inside & (remainder >= self.start) & (remainder < self.stop)
        return inside

    def least(self) -> int | None:
        """The smallest member, or None of an empty set."""
        first = int(self.ceil(torch.tensor(self.lo)))
        return first if first < self.hi else None

    def greatest(self) -> int | None:
        """The largest member, FOREVER where there is no bound, None of an empty set."""
        if self.least() is None:
            return None
        return FOREVER if self.hi == FOREVER else int(self.floor(torch.tensor(self.hi - 1)))

    def is_empty(self) -> bool:
        return self.least() is None

    def ceil(self, x: Tensor) -> Tensor:
        """The smallest member at or after each x (at or after ``lo``); ``hi`` is not looked at."""
        x = x.clamp(min=self.lo).long()
        base, remainder = x - x % self.period, x % self.period
        within = torch.where(remainder < self.start, base + self.start, x)
        return torch.where(remainder >= self.stop, base + self.period + self.start, within)

    def floor(self, x: Tensor) -> Tensor:
        """The largest member at or before each x (before ``hi``); ``lo`` is not looked at."""
        x = x.clamp(max=self.hi - 1).long()
        base, remainder = x - x % self.period, x % self.period
        within = torch.where(remainder >= self.stop, base + self.stop - 1, x)
        return torch.where(remainder < self.start, base - self.period + self.stop - 1, within)

    def count(self, lo: Tensor, hi: Tensor) -> Tensor:
        """How many members each range [lo, hi) has."""
        lo = lo.clamp(self.lo, self.hi).long()
        hi = torch.maximum(hi.clamp(self.lo, self.hi).long(), lo)
        return self._members_below(hi) - self._members_below(lo)

    def _members_below(self, x: Tensor) -> Tensor:
        width = self.stop - self.start
        full_periods = torch.div(x, self.period, rounding_mode="floor")
        return full_periods * width + (x % self.period - self.start).clamp(0, width)

    def intersect(self, other: Progression) -> Progression | None:
        """The common members; None where no single period can say it."""
        lo, hi = max(self.lo, other.lo), min(self.hi, other.hi)
        remainders = _common_remainders(self, other)
        if remainders is None:
            return None
        period, start, stop = remainders
        return Progression(lo, hi, period, start, stop)

    def minus(self, other: Progression) -> tuple[Progression, ...] | None:
        """Disjoint pieces with the members that ``other`` lacks; None where no single period can say it."""
        common = self.intersect(other)
        if common is not None and common.is_empty():
            return (self,)
        outside = (self._between(self.lo, other.lo), self._between(other.hi, self.hi))
        inside = self._between(other.lo, other.hi)
        remainders = _lacking_remainders(self, other)
        if remainders is None:
            return None
        rest = [Progression(inside.lo, inside.hi, *remainder) for remainder in remainders]
        return tuple(piece for piece in (*outside, *rest) if not piece.is_empty())

    def _between(self, lo: int, hi: int) -> Progression:
        return Progression(max(self.lo, lo), min(self.hi, hi), self.period, self.start, self.stop)


Remainders = tuple[int, int, int]  # period, start, stop


def _common_remainders(a: Progression, b: Progression) -> Remainders | None:
    if a.period < b.period:
        a, b = b, a
    if b.period == 1:
        return a.period, a.start, a.stop
    if a.period % b.period == 0:
        block = a.start - a.start % b.period
        # A run of the longer period that crosses into the next block meets the shorter one in several runs.
        if a.stop > block + b.period:
            return None
        return a.period, max(a.start, block + b.start), min(a.stop, block + b.stop)
    if a.stop - a.start == 1 and b.stop - b.start == 1:
        return _chinese_remainder(a, b)
    return None


def _chinese_remainder(a: Progression, b: Progression) -> Remainders:
    divisor = math.gcd(a.period, b.period)
    period = a.period * b.period // divisor
    if (a.start - b.start) % divisor:
        return period, 0, 0
    turns = (b.start - a.start) // divisor * pow(a.period // divisor, -1, b.period // divisor)
    start = (a.start + a.period * turns) % period
    return period, start, start + 1


def _lacking_remainders(a: Progression, b: Progression) -> tuple[Remainders, ...] | None:
    """The remainders of ``a`` that ``b`` lacks, as runs of one period."""
    period, start, stop = (b.period, 0, b.period) if a.period == 1 else (a.period, a.start, a.stop)
    common = _common_remainders(a, b)
    if common is None or common[0] != period:
        return None
    return (period, start, min(stop, common[1])), (period, max(start, common[2]), stop)
