"""A mask for each group of query heads."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from .mask import Mask


@dataclass(frozen=True)
class PerHead(Mask):
    """Mask m of M for the m-th M-th of the query heads, in order: ``heads[window:64; causal]`` halves them.

    Set operators go inside when they are applied, ``heads[a; b] | c`` is ``heads[a|c; b|c]``, so it is always
    outermost. It has no pairs of its own: ask each of `heads`, or `union` for what any of them allows. `last_reader`
    and `lookahead` are those of the union, which is what caches and generation need.

    Parameters:
        masks: at least two, none of which differs by head itself. As many must divide the model's query heads.
    """

    masks: tuple[Mask, ...]

    name: ClassVar[str] = "heads"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(self.masks))
        for mask in self.masks:
            if not isinstance(mask, Mask):
                raise ValueError(f"heads: expected masks, got {mask!r}")
            if len(mask.heads) > 1:
                raise ValueError(f"heads: masks for heads may not nest, got {mask}")
            if mask.is_adaptive:
                raise ValueError(f"heads: a mask that looks at the content differs by head itself, got {mask}")
        if len(self.masks) < 2:
            raise ValueError(f"heads: expected at least two masks, got {len(self.masks)}; write one mask without heads")
        _union_of(self.masks)  # refuses one that nests too deep

    @property
    def heads(self) -> tuple[Mask, ...]:
        return self.masks

    def bind(self, spans: tuple[tuple[int, int], ...]) -> PerHead:
        return self if self.is_bound else PerHead(tuple(mask.bind(spans) for mask in self.masks))

    @property
    def is_bound(self) -> bool:
        return all(mask.is_bound for mask in self.masks)

    @property
    def depth(self) -> int:
        return max(mask.depth for mask in self.masks)

    @property
    def union(self) -> Mask:
        return _union_of(self.masks)

    def allows(self, q: Tensor, k: Tensor) -> NoReturn:
        self._refuse()

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> NoReturn:
        self._refuse()

    def intervals(self, q: Tensor) -> NoReturn:
        self._refuse()

    def last_reader(self, k: Tensor) -> Tensor:
        return functools.reduce(torch.maximum, (mask.last_reader(k) for mask in self.masks))

    @property
    def lookahead(self) -> int:
        return max(mask.lookahead for mask in self.masks)

    def __str__(self) -> str:
        return f"{self.name}[{'; '.join(map(str, self.masks))}]"

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"the heads of '{self}' differ, so it has no pairs of its own; ask mask.heads[i] for those of a group of "
            "heads, or mask.union for what any head allows"
        )


def _union_of(masks: tuple[Mask, ...]) -> Mask:
    from .compositions import Union  # which puts masks by head together itself

    return Union.of(*masks)
