"""The one face that every mask has: four questions, three operators and a spec."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import intervals, tile
from .graded import Graded
from .intervals import Intervals
from .progression import FOREVER
from .strip import Strip


@dataclass(frozen=True)
class Mask:
    """A set of (query position, key position) pairs; True = may attend.

    A position is the index of a token among the real tokens of its own document, from 0. Masks are values: frozen,
    hashable, comparable, picklable. A pattern is one dataclass that states its ``strips``, or else answers
    ``allows``, ``tiles``, ``last_reader`` and ``lookahead`` itself. Answers are exact for patterns and sound for
    compositions: a tile that says NONE or ALL is right, ``last_reader`` and ``lookahead`` are never too small.
    """

    name: ClassVar[str] = ""
    # How tightly the printed form binds; compositions bind less (see `compositions`).
    precedence: ClassVar[int] = 3

    def strips(self) -> tuple[Strip, ...] | None:
        """Disjoint strips whose union this mask is, or None where it is not that regular."""
        return None

    def intervals(self, q: Tensor) -> list[Intervals]:
        """Disjoint pieces whose union this mask is, for query positions ``q`` (``[Q]`` integers); plans are made so."""
        strips = self.strips()
        if strips is None:
            return intervals.irregular(self, q, self.lookahead)
        # Distances that lie behind every query are left out: of a logarithm's thirty, half.
        furthest = int(q.max()) if len(q) else 0
        return [intervals.of_strip(strip, q) for strip in strips if strip.distances.lo <= furthest]

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether each query position may attend to each key position (broadcast), as booleans."""
        empty = torch.zeros(torch.broadcast_shapes(q.shape, k.shape), dtype=torch.bool, device=q.device)
        return functools.reduce(torch.logical_or, (strip.allows(q, k) for strip in self._own_strips()), empty)

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        """NONE, SOME or ALL of each rectangle ``[q_lo, q_hi) x [k_lo, k_hi)`` (broadcast), as int8."""
        bounds = torch.broadcast_tensors(q_lo, q_hi, k_lo, k_hi)
        empty = torch.full(bounds[0].shape, tile.Tile.NONE, dtype=torch.int8, device=q_lo.device)
        return functools.reduce(tile.union, (strip.tiles(*bounds) for strip in self._own_strips()), empty)

    def last_reader(self, k: Tensor) -> Tensor:
        """The greatest position that may attend to each key: FOREVER if there is no end, -1 if there is none."""
        nobody = torch.full_like(k, -1, dtype=torch.long)
        return functools.reduce(torch.maximum, (strip.last_reader(k) for strip in self._own_strips()), nobody)

    @property
    def lookahead(self) -> int:
        """The greatest ``key - query`` allowed; 0 for a causal mask."""
        return max((strip.lookahead for strip in self._own_strips()), default=0)

    def dense(self, q_len: int, k_len: int | None = None, q_offset: int = 0, *, device: Any = None) -> Tensor:
        """The mask as booleans ``[q_len, k_len]``; row r is position ``q_offset + r``."""
        k_len = q_offset + q_len if k_len is None else k_len
        q = torch.arange(q_offset, q_offset + q_len, device=device)
        return self.allows(q[:, None], torch.arange(k_len, device=device)[None, :])

    def __or__(self, other: Mask) -> Mask:
        from .compositions import Union

        return Union.of(self, other) if isinstance(other, Mask) else NotImplemented

    def __and__(self, other: Mask) -> Mask:
        from .compositions import Intersection

        return Intersection.of(self, other) if isinstance(other, Mask) else NotImplemented

    def __sub__(self, other: Mask) -> Mask:
        from .compositions import Difference

        return Difference.of(self, other) if isinstance(other, Mask) else NotImplemented

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mask:
        """Builds the mask from what follows its name in a spec; raises ValueError where that does not fit."""
        try:
            bound = inspect.signature(cls).bind(*arguments, **keywords)
        except TypeError as error:
            names = ",".join(field.name if field.default is MISSING else f"[{field.name}]" for field in fields(cls))
            raise ValueError(f"{cls.name}: {error}; write {cls.name}{':' if names else ''}{names}") from None
        return cls(*bound.args, **bound.kwargs)

    def arguments(self) -> tuple[Any, ...]:
        """What follows the name in the printed spec: the fields, without trailing defaults."""
        values = [(getattr(self, field.name), field.default) for field in fields(self)]
        while values and values[-1][1] is not MISSING and values[-1][0] == values[-1][1]:
            values.pop()
        return tuple(value for value, _ in values)

    @property
    def heads(self) -> tuple[Mask, ...]:
        """The masks of the groups of query heads, in order; one, unless the heads differ."""
        return (self,)

    @property
    def union(self) -> Mask:
        """What any head allows: the mask itself, unless the heads differ."""
        return self

    def bind(self, spans: tuple[tuple[int, int], ...]) -> Mask:
        """The mask for one document, told what comes with the batch: where its marked spans are.

        Parameters:
            spans: first position and the one behind the last of each span, in order; a prefix is the one from 0.
        """
        return self

    @property
    def is_bound(self) -> bool:
        """Whether all is known without a batch; a mask that is not bound answers no question."""
        return True

    @property
    def is_adaptive(self) -> bool:
        """Whether the content has a say; such a mask answers no question about pairs but `graded`."""
        return False

    def graded(self) -> Graded:
        """The mask as weights: what is sure, and what the content decides."""
        return Graded(full=self)

    @property
    def depth(self) -> int:
        """How deep the expression nests; a pattern has depth 0."""
        return 0

    def __str__(self) -> str:
        arguments = ",".join(str(argument) for argument in self.arguments())
        return f"{self.name}:{arguments}" if arguments else self.name

    def _own_strips(self) -> tuple[Strip, ...]:
        strips = self.strips()
        if strips is None:
            raise NotImplementedError(f"{type(self).__name__} must define strips(), or all four answers")
        return strips

    def _require_int(self, field: str, minimum: int, maximum: int = FOREVER) -> None:
        require_int(f"{self.name}: `{field}`", getattr(self, field), minimum, maximum)


def require_int(what: str, value: Any, minimum: int, maximum: int = FOREVER) -> None:
    """Raises a ValueError unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValueError(f"{what} must be an integer from {minimum} to {maximum}, got {value!r}")
