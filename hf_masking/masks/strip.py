"""Strips: the regular sets of pairs that most masks are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .progression import FOREVER, Progression
from .tile import classify

# A union of more pieces than this is no longer "regular": who asks for strips is told None.
MAX_STRIPS = 64


@dataclass(frozen=True)
class Strip:
    """The pairs (query i, key j) with ``i - j`` in ``distances`` and ``j`` in ``keys``."""

    distances: Progression = field(default_factory=Progression)
    keys: Progression = field(default_factory=Progression)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        allowed = self.distances.contains(q - k)
        return allowed if self.keys == Progression() else allowed & self.keys.contains(k)

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        """Exact, unless both the distances and the keys have gaps or ends: then NONE may come out as SOME."""
        size = (q_hi - q_lo).clamp(min=0) * (k_hi - k_lo).clamp(min=0)
        every_key = self.keys.count(k_lo, k_hi) == k_hi - k_lo
        every_distance = self.distances.count(q_lo - k_hi + 1, q_hi - k_lo) == q_hi - k_lo - (q_lo - k_hi + 1)
        first, last = torch.maximum(self.keys.ceil(k_lo), k_lo), torch.minimum(self.keys.floor(k_hi - 1), k_hi - 1)
        none = (size == 0) | (first > last) | (self.distances.count(q_lo - last, q_hi - first) == 0)
        return classify(none, every_key & every_distance)

    def last_reader(self, k: Tensor) -> Tensor:
        greatest = self.distances.greatest()
        if greatest is None:
            return torch.full_like(k, -1, dtype=torch.long)
        last = (k.long() + greatest).clamp(max=FOREVER)
        return torch.where(self.keys.contains(k) & (last >= 0), last, -1)

    @property
    def lookahead(self) -> int:
        least = self.distances.least()
        return 0 if least is None else max(0, -least)

    def is_empty(self) -> bool:
        return self.distances.is_empty() or self.keys.is_empty()

    def intersect(self, other: Strip) -> Strip | None:
        """The common pairs; None where that is no strip."""
        distances, keys = self.distances.intersect(other.distances), self.keys.intersect(other.keys)
        return None if distances is None or keys is None else Strip(distances, keys)

    def minus(self, other: Strip) -> tuple[Strip, ...] | None:
        """Disjoint strips with the pairs that ``other`` lacks; None where there are none such."""
        distances, keys = self.distances.intersect(other.distances), self.keys.intersect(other.keys)
        if (distances is not None and distances.is_empty()) or (keys is not None and keys.is_empty()):
            return (self,)
        other_distances, other_keys = self.distances.minus(other.distances), self.keys.minus(other.keys)
        if other_distances is None or other_keys is None or (distances is None and keys is None):
            return None
        if distances is not None:
            pieces = [Strip(d, self.keys) for d in other_distances] + [Strip(distances, k) for k in other_keys]
        else:
            assert keys is not None
            pieces = [Strip(self.distances, k) for k in other_keys] + [Strip(d, keys) for d in other_distances]
        return tuple(piece for piece in pieces if not piece.is_empty())


def subtract(strips: Iterable[Strip], removed: Iterable[Strip]) -> tuple[Strip, ...] | None:
    """Disjoint strips for the difference of two unions; None where there are none such, or too many."""
    pieces = list(strips)
    for hole in removed:
        rest: list[Strip] = []
        for piece in pieces:
            remaining = piece.minus(hole)
            if remaining is None or len(rest) + len(remaining) > MAX_STRIPS:
                return None
            rest.extend(remaining)
        pieces = rest
    return tuple(pieces)


def unite(strips: Iterable[Strip], added: Iterable[Strip]) -> tuple[Strip, ...] | None:
    """Disjoint strips for the union of two unions of disjoint strips."""
    strips = tuple(strips)
    new = subtract(added, strips)
    return None if new is None or len(strips) + len(new) > MAX_STRIPS else strips + new


def intersect(strips: Iterable[Strip], others: Iterable[Strip]) -> tuple[Strip, ...] | None:
    """Disjoint strips for the intersection of two unions of disjoint strips."""
    others = tuple(others)
    common: list[Strip] = []
    for strip in strips:
        for other in others:
            meeting = strip.intersect(other)
            if meeting is None or len(common) > MAX_STRIPS:
                return None
            common.extend([] if meeting.is_empty() else [meeting])
    return tuple(common)
