"""A mask for each group of query heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from .marks import Marks
from .mask import Composition, Difference, Intersection, Mask, MaskExpression, Union


@dataclass(frozen=True)
class HeadMasks(MaskExpression):
    """Masks for groups of query heads: ``heads[window:64; causal]`` gives each half of the heads one of the two.

    The query heads are split into M equal contiguous groups; mask m is that of group m. Operators go inside:
    ``heads[a; b] | c`` is ``heads[a|c; b|c]``, so this is always the outermost expression. It is not a `Mask`, because
    it has no pairs of its own: ask each of ``heads``, or ``union`` for the pairs that any head allows.

    Parameters:
        masks: at least two static masks. Their number must divide the model's query heads.
    """

    masks: tuple[Mask, ...]

    name: ClassVar[str] = "heads"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", tuple(self.masks))
        for mask in self.masks:
            if isinstance(mask, HeadMasks):
                raise ValueError(f"heads: masks for heads may not nest, got {mask}")
            if not isinstance(mask, Mask):
                raise ValueError(f"heads: expected masks, got {mask!r}")
            if mask.is_adaptive:
                raise ValueError(f"heads: an adaptive mask differs by head itself, got {mask}")
        if len(self.masks) < 2:
            raise ValueError(f"heads: expected at least two masks, got {len(self.masks)}; write one mask without heads")
        _ = self.union  # refuses one that nests too deep

    @property
    def heads(self) -> tuple[Mask, ...]:
        return self.masks

    @property
    def union(self) -> Mask:
        return Union.of(*self.masks)

    @property
    def needs(self) -> frozenset[str]:
        return self.union.needs

    def bind(self, marks: Marks) -> HeadMasks:
        return HeadMasks(tuple(mask.bind(marks) for mask in self.masks)) if self.needs else self

    @property
    def unmarked(self) -> HeadMasks:
        return self.bind(Marks())

    def normal_form(self) -> NoReturn:
        raise AttributeError(self._refusal("normal_form"))

    def __or__(self, other: MaskExpression) -> MaskExpression:
        return _compose_if_possible(Union, self, other)

    def __ror__(self, other: Mask) -> MaskExpression:
        return _compose_if_possible(Union, other, self)

    def __and__(self, other: MaskExpression) -> MaskExpression:
        return _compose_if_possible(Intersection, self, other)

    def __rand__(self, other: Mask) -> MaskExpression:
        return _compose_if_possible(Intersection, other, self)

    def __sub__(self, other: MaskExpression) -> MaskExpression:
        return _compose_if_possible(Difference, self, other)

    def __rsub__(self, other: Mask) -> MaskExpression:
        return _compose_if_possible(Difference, other, self)

    def __str__(self) -> str:
        return f"{self.name}[{'; '.join(map(str, self.masks))}]"

    def _refusal(self, name: str) -> str:
        return (
            f"the heads of '{self}' differ, so it has no `{name}` of its own; ask mask.heads[i] for that of a group of "
            "heads, or mask.union for that of all pairs that any head allows"
        )

    if not TYPE_CHECKING:  # a type checker sees that there is no such attribute

        def __getattr__(self, name: str) -> NoReturn:
            if hasattr(Mask, name):
                raise AttributeError(self._refusal(name))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def compose(operator: type[Composition], *operands: MaskExpression) -> MaskExpression:
    """Return a composition; the operator goes inside masks that differ by head.

    Raises:
        ValueError: the operands are for different numbers of groups of heads.
    """
    (count, *others) = sorted({len(operand.heads) for operand in operands} - {1}) or [1]
    if others:
        sizes = " and ".join(map(str, (count, *others)))
        raise ValueError(f"heads[...] of {sizes} masks cannot be combined; give both as many masks")
    spread = [operand.heads * (count // len(operand.heads)) for operand in operands]
    composed = tuple(operator.of(*members) for members in zip(*spread, strict=True))
    return HeadMasks(composed) if count > 1 else composed[0]


def _compose_if_possible(operator: type[Composition], left: MaskExpression, right: MaskExpression) -> MaskExpression:
    both = isinstance(left, MaskExpression) and isinstance(right, MaskExpression)
    return compose(operator, left, right) if both else NotImplemented
