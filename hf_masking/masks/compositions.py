"""Union, intersection and difference of masks. Each answer follows from the members' answers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import intervals, tile
from .graded import Graded
from .intervals import MAX_PIECES, Intervals, Lattice
from .mask import Mask
from .per_head import PerHead

MAX_DEPTH = 64


@dataclass(frozen=True)
class _Composition(Mask):
    """What the three operators share: how they print, and how deep they may nest."""

    symbol: ClassVar[str] = ""

    @classmethod
    def of(cls, *operands: Mask) -> Mask:
        """The composition; it goes inside masks that differ by head: ``heads[a; b] | c`` is ``heads[a|c; b|c]``."""
        groups = {len(operand.heads) for operand in operands} - {1}
        if not groups:
            return cls._of_operands(operands)
        if len(groups) > 1:
            sizes = " and ".join(map(str, sorted(groups)))
            raise ValueError(f"heads[...] of {sizes} masks cannot be combined; give both as many masks")
        (count,) = groups
        spread = [operand.heads * (count // len(operand.heads)) for operand in operands]
        return PerHead(tuple(cls._of_operands(members) for members in zip(*spread, strict=True)))

    @classmethod
    def _of_operands(cls, operands: tuple[Mask, ...]) -> Mask:
        raise NotImplementedError

    @property
    def operands(self) -> tuple[Mask, ...]:
        raise NotImplementedError

    def bind(self, spans: tuple[tuple[int, int], ...]) -> Mask:
        return self if self.is_bound else self._of_operands(tuple(operand.bind(spans) for operand in self.operands))

    @property
    def is_bound(self) -> bool:
        return all(operand.is_bound for operand in self.operands)

    @property
    def is_adaptive(self) -> bool:
        return any(operand.is_adaptive for operand in self.operands)

    def graded(self) -> Graded:
        return self._graded() if self.is_adaptive else Graded(full=self)

    def _graded(self) -> Graded:
        raise NotImplementedError

    @property
    def depth(self) -> int:
        return 1 + max(operand.depth for operand in self.operands)

    def __str__(self) -> str:
        first, *others = self.operands
        # Left-associative: the first operand may bind as loosely as the operator itself, the others must bind tighter.
        printed = [_parenthesised(first, first.precedence < self.precedence)]
        printed += [_parenthesised(other, other.precedence <= self.precedence) for other in others]
        return self.symbol.join(printed)

    def intervals(self, q: Tensor) -> list[Intervals]:
        pieces = self._pieces(q)
        return pieces if len(pieces) <= MAX_PIECES else intervals.irregular(self, q, self.lookahead)

    def _pieces(self, q: Tensor) -> list[Intervals]:
        raise NotImplementedError

    def _check(self) -> None:
        for operand in self.operands:
            if not isinstance(operand, Mask):
                raise ValueError(f"{type(self).__name__} combines masks, got {operand!r}")
            if len(operand.heads) > 1:
                raise ValueError(f"{operand} differs by head; combine it with |, & and -, which go inside")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"a mask may nest {MAX_DEPTH} operators deep, got {self.depth}; use fewer parentheses")
        self.graded()  # refuses what cannot be computed


def _parenthesised(mask: Mask, needed: bool) -> str:
    return f"({mask})" if needed else str(mask)


@dataclass(frozen=True)
class _Members(_Composition):
    """An associative operator: nested uses of it are flattened, the order stays."""

    members: tuple[Mask, ...]

    def __post_init__(self) -> None:
        flat: list[Mask] = []
        for member in self.members:
            flat.extend(member.members if isinstance(member, type(self)) else (member,))
        object.__setattr__(self, "members", tuple(flat))
        if len(flat) < 2:
            raise ValueError(f"{type(self).__name__} combines at least two masks, got {len(flat)}")
        self._check()

    @classmethod
    def _of_operands(cls, operands: tuple[Mask, ...]) -> Mask:
        return cls(operands)

    @property
    def operands(self) -> tuple[Mask, ...]:
        return self.members

    def _graded(self) -> Graded:
        parts = [member.graded() for member in self.members if member.is_adaptive]
        # All static members at once: taken one by one, each would copy what the ones before have come to.
        if static := [member for member in self.members if not member.is_adaptive]:
            parts.append(Graded(full=self._of_operands(tuple(static)) if len(static) > 1 else static[0]))
        return functools.reduce(self._grade, parts)

    def _grade(self, left: Graded, right: Graded) -> Graded:
        raise NotImplementedError


@dataclass(frozen=True)
class Union(_Members):
    """``a|b``: the pairs that any member allows."""

    symbol: ClassVar[str] = "|"
    precedence: ClassVar[int] = 0

    def _grade(self, left: Graded, right: Graded) -> Graded:
        return left | right

    def _pieces(self, q: Tensor) -> list[Intervals]:
        members = [(member, member.intervals(q)) for member in self.members]
        # What is cut out of the others comes first: intervals of all keys, since they can be cut out of a sparser set
        # and not the other way round, and of these the longest, since a short one would leave two halves.
        members.sort(key=lambda item: (_is_sparse(item[1]), -max((_size(piece) for piece in item[1]), default=0)))
        result: list[Intervals] = []
        for index, (_, pieces) in enumerate(members):
            for earlier, earlier_pieces in members[:index]:
                pieces = intervals.subtract(pieces, earlier_pieces, earlier)
                if len(pieces) > MAX_PIECES:
                    return pieces  # too many, and cut short: nothing may be taken from them any more
            result.extend(pieces)
        return result

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return functools.reduce(torch.logical_or, (member.allows(q, k) for member in self.members))

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        return functools.reduce(tile.union, (member.tiles(q_lo, q_hi, k_lo, k_hi) for member in self.members))

    def last_reader(self, k: Tensor) -> Tensor:
        return functools.reduce(torch.maximum, (member.last_reader(k) for member in self.members))

    @property
    def lookahead(self) -> int:
        return max(member.lookahead for member in self.members)


@dataclass(frozen=True)
class Intersection(_Members):
    """``a&b``: the pairs that every member allows."""

    symbol: ClassVar[str] = "&"
    precedence: ClassVar[int] = 1

    def _grade(self, left: Graded, right: Graded) -> Graded:
        return left & right

    def _pieces(self, q: Tensor) -> list[Intervals]:
        first, *others = self.members
        result = first.intervals(q)
        for member in others:
            result = intervals.intersect(result, member.intervals(q), member)
        return result

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return functools.reduce(torch.logical_and, (member.allows(q, k) for member in self.members))

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        return functools.reduce(tile.intersection, (member.tiles(q_lo, q_hi, k_lo, k_hi) for member in self.members))

    def last_reader(self, k: Tensor) -> Tensor:
        return functools.reduce(torch.minimum, (member.last_reader(k) for member in self.members))

    @property
    def lookahead(self) -> int:
        return min(member.lookahead for member in self.members)


@dataclass(frozen=True)
class Difference(_Composition):
    """``a-b``: the pairs that ``left`` allows and ``right`` does not."""

    left: Mask
    right: Mask

    symbol: ClassVar[str] = "-"
    precedence: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def _of_operands(cls, operands: tuple[Mask, ...]) -> Mask:
        return cls(*operands)

    @property
    def operands(self) -> tuple[Mask, ...]:
        return self.left, self.right

    def _graded(self) -> Graded:
        return self.left.graded() - self.right.graded()

    def _pieces(self, q: Tensor) -> list[Intervals]:
        return intervals.subtract(self.left.intervals(q), self.right.intervals(q), self.right)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allows(q, k) & ~self.right.allows(q, k)

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        bounds = (q_lo, q_hi, k_lo, k_hi)
        return tile.difference(self.left.tiles(*bounds), self.right.tiles(*bounds))

    def last_reader(self, k: Tensor) -> Tensor:
        return self.left.last_reader(k)

    @property
    def lookahead(self) -> int:
        return self.left.lookahead


def _is_sparse(pieces: list[Intervals]) -> bool:
    return any(piece.lattice != Lattice() for piece in pieces)


def _size(piece: Intervals) -> int:
    return int((piece.stop - piece.first.clamp(min=0)).clamp(min=0).sum())
