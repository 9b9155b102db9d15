"""The base of masks that are one class with parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import intervals, tile
from .intervals import Intervals
from .mask import Mask
from .progression import FOREVER
from .strip import Strip

_Self = TypeVar("_Self", bound="Pattern")


@dataclass(frozen=True)
class Pattern(Mask):
    """A mask with a name and parameters: its fields are what follows the name in a spec.

    A pattern states its ``strips``, and every answer follows from them. One that is not made of strips answers
    ``allows``, ``tiles``, ``last_reader`` and ``lookahead`` itself, and ``intervals`` if it has any.
    """

    def strips(self) -> tuple[Strip, ...] | None:
        """Return disjoint strips whose union this mask is, or None if it is not that regular."""
        return None

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        empty = torch.zeros(torch.broadcast_shapes(q.shape, k.shape), dtype=torch.bool, device=q.device)
        return functools.reduce(torch.logical_or, (strip.allows(q, k) for strip in self._own_strips()), empty)

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        bounds = torch.broadcast_tensors(q_lo, q_hi, k_lo, k_hi)
        empty = torch.full(bounds[0].shape, tile.Tile.NONE, dtype=torch.int8, device=q_lo.device)
        return functools.reduce(tile.union, (strip.tiles(*bounds) for strip in self._own_strips()), empty)

    def last_reader(self, k: Tensor) -> Tensor:
        nobody = torch.full_like(k, -1, dtype=torch.long)
        return functools.reduce(torch.maximum, (strip.last_reader(k) for strip in self._own_strips()), nobody)

    @property
    def lookahead(self) -> int:
        return max((strip.lookahead for strip in self._own_strips()), default=0)

    def intervals(self, q: Tensor) -> list[Intervals]:
        strips = self.strips()
        if strips is None:
            return super().intervals(q)
        # Strips with distances greater than every query position are left out: half of those of `log_sparse`.
        furthest = int(q.max()) if len(q) else 0
        return [intervals.of_strip(strip, q) for strip in strips if strip.distances.lo <= furthest]

    @classmethod
    def from_arguments(cls: type[_Self], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> _Self:
        """Build the mask from what follows its name in a spec; raise ValueError if that does not fit."""
        try:
            bound = inspect.signature(cls).bind(*arguments, **keywords)
        except TypeError as error:
            names = ",".join(field.name if field.default is MISSING else f"[{field.name}]" for field in fields(cls))
            raise ValueError(f"{cls.name}: {error}; write {cls.name}{':' if names else ''}{names}") from None
        return cls(*bound.args, **bound.kwargs)

    def arguments(self) -> tuple[Any, ...]:
        """Return what follows the name in the printed spec: the fields, without trailing defaults."""
        values = [(getattr(self, field.name), field.default) for field in fields(self)]
        while values and values[-1][1] is not MISSING and values[-1][0] == values[-1][1]:
            values.pop()
        return tuple(value for value, _ in values)

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
    """Raise a ValueError unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValueError(f"{what} must be an integer from {minimum} to {maximum}, got {value!r}")
