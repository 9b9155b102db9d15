"""Regular sets of integers: an interval, and inside it some of the remainders of a period."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Positions and distances are below this number, so it stands for "no bound" and still fits into an int32.
FOREVER = 2**31 - 1


@dataclass(frozen=True)
class Progression:
    """The integers x with ``lo <= x < hi`` and ``start <= x mod period < stop``.

    The default is everything from 0 on. ``Progression(period=64, stop=1)`` are the multiples of 64.
    """

    lo: int = 0
    hi: int = FOREVER
    period: int = 1
    start: int = 0
    stop: int = -1  # up to the period

    def __post_init__(self) -> None:
        start, stop = self.start, self.period if self.stop == -1 else self.stop
        # Equal sets are equal values: without remainders the interval is empty, with all of them the period is 1.
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
        """Return the smallest member, or None for an empty set."""
        first = int(self.ceil(torch.tensor(self.lo, device="cpu")))
        return first if first < self.hi else None

    def greatest(self) -> int | None:
        """Return the largest member, FOREVER without a bound, or None for an empty set."""
        if self.least() is None:
            return None
        return FOREVER if self.hi == FOREVER else int(self.floor(torch.tensor(self.hi - 1, device="cpu")))

    def ceil(self, x: Tensor) -> Tensor:
        """Return the smallest member at or after each x (at or after ``lo``), as if there were no ``hi``."""
        x = x.clamp(min=self.lo).long()
        base, remainder = x - x % self.period, x % self.period
        within = torch.where(remainder < self.start, base + self.start, x)
        return torch.where(remainder >= self.stop, base + self.period + self.start, within)

    def floor(self, x: Tensor) -> Tensor:
        """Return the largest member at or before each x (before ``hi``), as if there were no ``lo``."""
        x = x.clamp(max=self.hi - 1).long()
        base, remainder = x - x % self.period, x % self.period
        within = torch.where(remainder >= self.stop, base + self.stop - 1, x)
        return torch.where(remainder < self.start, base - self.period + self.stop - 1, within)

    def count(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Return the number of members in each range [lo, hi)."""
        lo = lo.clamp(self.lo, self.hi).long()
        hi = torch.maximum(hi.clamp(self.lo, self.hi).long(), lo)
        return self._members_below(hi) - self._members_below(lo)

    def _members_below(self, x: Tensor) -> Tensor:
        width = self.stop - self.start
        full_periods = torch.div(x, self.period, rounding_mode="floor")
        return full_periods * width + (x % self.period - self.start).clamp(0, width)
