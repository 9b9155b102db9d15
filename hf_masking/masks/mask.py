"""The algebra of masks: what every mask can be asked, and the three operators that combine masks.

Operators return the classes that stand below them, so all of this is one module.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import intervals, picture, tile
from .intervals import Intervals, Lattice, TooIrregularError
from .marks import Marks
from .mask_mod import MaskMod, mask_mod
from .normal_form import NormalForm

MAX_DEPTH = 64


class MaskExpression:
    """Base of everything that a spec can stand for: it prints, and ``|``, ``&`` and ``-`` combine it.

    It is either a `Mask`, which answers questions about pairs, or `HeadMasks`, which holds masks for groups of query
    heads and answers none.
    """

    name: ClassVar[str] = ""
    precedence: ClassVar[int] = 3  # how tightly the printed form binds; compositions bind less

    @property
    def heads(self) -> tuple[Mask, ...]:
        """The masks of the groups of query heads, in order; one mask, unless the heads differ."""
        raise NotImplementedError

    @property
    def union(self) -> Mask:
        """The pairs that any head allows: the mask itself, unless the heads differ."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """The marks that must come with the batch, such as ``prefix``; without them it answers no question."""
        return frozenset()

    def bind(self, marks: Marks) -> MaskExpression:
        """Return the mask for one document whose marks are known."""
        raise NotImplementedError

    @property
    def unmarked(self) -> MaskExpression:
        """The mask in a document without marks."""
        return self.bind(Marks())

    @property
    def is_adaptive(self) -> bool:
        """True if hidden states decide part of the mask; then only its normal form answers questions about pairs."""
        return False

    @property
    def weightings(self) -> tuple[Any, ...]:
        """The adaptive masks in it that give pairs soft weights (`hf_masking.adaptive.Weighting`), in order."""
        return self.normal_form().weights if self.is_adaptive else ()

    @property
    def selection(self) -> Any | None:
        """The adaptive mask in it that picks key blocks (`hf_masking.adaptive.Selection`), if there is one."""
        return self.normal_form().selection if self.is_adaptive else None

    def normal_form(self) -> NormalForm:
        """Return the mask as weights: the pairs of weight 1, and those whose weight hidden states decide."""
        raise NotImplementedError

    def mask_mod(self, n_heads: int | None = None, *, device: torch.device | str = "cpu") -> MaskMod:
        """Return the mask as a ``mask_mod`` of FlexAttention: a function of batch, head, query and key index.

        The indices are positions: of one document per row, without padding.

        Parameters:
            n_heads: number of query heads, needed if the heads differ.
            device: where the attention is computed.
        """
        return mask_mod(self.heads, n_heads, torch.device(device))

    def plot(self, length: int = 64) -> Any:
        """Return a matplotlib figure of the mask over ``length`` positions; needs the extra ``plot``."""
        return picture.plot(self, length)

    def _repr_html_(self) -> str | None:
        """Return a small picture for notebooks; None for an adaptive mask, which they print."""
        return None if self.is_adaptive else picture.as_html(self)

    def __or__(self, other: Any) -> Any:
        return NotImplemented

    def __and__(self, other: Any) -> Any:
        return NotImplemented

    def __sub__(self, other: Any) -> Any:
        return NotImplemented


@dataclass(frozen=True)
class Mask(MaskExpression):
    """A set of (query position, key position) pairs; ``True`` = may attend.

    A position is the index of a token among the real tokens of its own document, from 0. Masks are values: frozen,
    hashable, comparable, picklable. Answers are exact for patterns and sound for compositions: a tile that is NONE or
    ALL is right, ``last_reader`` and ``lookahead`` are never too small.
    """

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        """Return whether each query position may attend to each key position (broadcast), as booleans."""
        raise NotImplementedError

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        """Return NONE, SOME or ALL for each rectangle ``[q_lo, q_hi) x [k_lo, k_hi)`` (broadcast), as int8."""
        raise NotImplementedError

    def last_reader(self, k: Tensor) -> Tensor:
        """Return the greatest position that may attend to each key: FOREVER without an end, -1 if there is none."""
        raise NotImplementedError

    @property
    def lookahead(self) -> int:
        """The greatest ``key - query`` allowed; 0 for a causal mask."""
        raise NotImplementedError

    def intervals(self, q: Tensor) -> list[Intervals]:
        """Return disjoint pieces whose union this mask is, for query positions ``q`` ``[N]``; plans are made of them.

        A mask that is too irregular is one piece that asks `allows` about every pair.
        """
        return intervals.irregular(self, q, self.lookahead)

    def dense(self, q_len: int, k_len: int | None = None, q_offset: int = 0, *, device: Any = None) -> Tensor:
        """Return the mask as booleans ``[q_len, k_len]``; row r is position ``q_offset + r``."""
        k_len = q_offset + q_len if k_len is None else k_len
        q = torch.arange(q_offset, q_offset + q_len, device=device)
        return self.allows(q[:, None], torch.arange(k_len, device=device)[None, :])

    def normal_form(self) -> NormalForm:
        return NormalForm(full=self)

    @property
    def depth(self) -> int:
        """The number of nested operators; 0 for a pattern."""
        return 0

    @property
    def heads(self) -> tuple[Mask, ...]:
        return (self,)

    @property
    def union(self) -> Mask:
        return self

    def bind(self, marks: Marks) -> Mask:
        return self

    @property
    def unmarked(self) -> Mask:
        return self.bind(Marks())

    def __or__(self, other: Mask) -> Mask:
        return Union.of(self, other) if isinstance(other, Mask) else NotImplemented

    def __and__(self, other: Mask) -> Mask:
        return Intersection.of(self, other) if isinstance(other, Mask) else NotImplemented

    def __sub__(self, other: Mask) -> Mask:
        return Difference.of(self, other) if isinstance(other, Mask) else NotImplemented


@dataclass(frozen=True)
class Composition(Mask):
    """The base of the three operators: they print alike, and nest to a limited depth."""

    symbol: ClassVar[str] = ""

    @classmethod
    def of(cls, *operands: Mask) -> Mask:
        """Return the composition of some masks."""
        raise NotImplementedError

    @property
    def operands(self) -> tuple[Mask, ...]:
        raise NotImplementedError

    def bind(self, marks: Marks) -> Mask:
        return self.of(*(operand.bind(marks) for operand in self.operands)) if self.needs else self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(operand.needs for operand in self.operands))

    @property
    def is_adaptive(self) -> bool:
        return any(operand.is_adaptive for operand in self.operands)

    def normal_form(self) -> NormalForm:
        return self._adaptive_form if self.is_adaptive else NormalForm(full=self)

    @functools.cached_property
    def _adaptive_form(self) -> NormalForm:
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
        try:
            return intervals.limited(self._pieces(q))
        except TooIrregularError:
            return super().intervals(q)

    def _pieces(self, q: Tensor) -> list[Intervals]:
        """Return disjoint pieces, as for `intervals`; raise TooIrregularError if there are too many."""
        raise NotImplementedError

    def _check(self) -> None:
        for operand in self.operands:
            if isinstance(operand, MaskExpression) and len(operand.heads) > 1:
                raise ValueError(f"{operand} differs by head; combine it with |, & and -, which go inside")
            if not isinstance(operand, Mask):
                raise ValueError(f"{type(self).__name__} combines masks, got {operand!r}")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"a mask may nest {MAX_DEPTH} operators deep, got {self.depth}; use fewer parentheses")
        self.normal_form()  # refuses what cannot be computed


def _parenthesised(mask: Mask, needed: bool) -> str:
    return f"({mask})" if needed else str(mask)


@dataclass(frozen=True)
class _Members(Composition):
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
    def of(cls, *operands: Mask) -> Mask:
        return cls(operands)

    @property
    def operands(self) -> tuple[Mask, ...]:
        return self.members

    @functools.cached_property
    def _adaptive_form(self) -> NormalForm:
        parts = [member.normal_form() for member in self.members if member.is_adaptive]
        # All static members at once: one by one, each step would copy the members before it.
        if static := [member for member in self.members if not member.is_adaptive]:
            parts.append(NormalForm(full=self.of(*static) if len(static) > 1 else static[0]))
        return functools.reduce(self._combine, parts)

    def _combine(self, left: NormalForm, right: NormalForm) -> NormalForm:
        raise NotImplementedError


@dataclass(frozen=True)
class Union(_Members):
    """``a|b``: the pairs that any member allows."""

    symbol: ClassVar[str] = "|"
    precedence: ClassVar[int] = 0

    def _combine(self, left: NormalForm, right: NormalForm) -> NormalForm:
        return left | right

    def _pieces(self, q: Tensor) -> list[Intervals]:
        members = [(member, member.intervals(q)) for member in self.members]
        # Each member loses the pairs of those before it. Intervals of all keys come first, since they can be cut out
        # of a sparser set but not the other way round; the longest first, since a short one would leave two halves.
        members.sort(key=lambda item: (_is_sparse(item[1]), -max((_size(piece) for piece in item[1]), default=0)))
        result: list[Intervals] = []
        for index, (_, pieces) in enumerate(members):
            for earlier, earlier_pieces in members[:index]:
                pieces = intervals.subtract(pieces, earlier_pieces, earlier)
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

    def _combine(self, left: NormalForm, right: NormalForm) -> NormalForm:
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
class Difference(Composition):
    """``a-b``: the pairs that ``left`` allows and ``right`` does not."""

    left: Mask
    right: Mask

    symbol: ClassVar[str] = "-"
    precedence: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def of(cls, *operands: Mask) -> Mask:
        return cls(*operands)

    @property
    def operands(self) -> tuple[Mask, ...]:
        return self.left, self.right

    @functools.cached_property
    def _adaptive_form(self) -> NormalForm:
        return self.left.normal_form() - self.right.normal_form()

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
