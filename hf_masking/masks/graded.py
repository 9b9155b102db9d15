"""What a composition of static masks and masks that look at the content comes to.

A mask that looks at the content gives each pair a weight from 0 to 1. Union is the greater weight, intersection the
product, and a static mask is one whose weights are 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mask import Mask


@dataclass(frozen=True)
class Graded:
    """The weight of a pair: 1 where ``full`` allows it, else where ``domain`` does the product of the leaves' weights.

    full: static; None where nothing is sure of weight 1.
    leaves: the masks that look at the content, in order (they are of `hf_masking.adaptive`, which is built on this);
        without any, ``full`` is all there is.
    domain: static; the pairs about which the leaves are asked.
    """

    full: Mask | None = None
    leaves: tuple[Any, ...] = ()
    domain: Mask | None = None

    @property
    def bound(self) -> Mask:
        """A static mask outside of which every weight is 0."""
        bound = self.full | self.domain if self.full and self.domain else self.full or self.domain
        assert bound is not None
        return bound

    @property
    def rest(self) -> Mask:
        """The pairs whose weight the leaves decide."""
        assert self.domain is not None
        return self.domain if self.full is None else self.domain - self.full

    def __or__(self, other: Graded) -> Graded:
        if self.leaves and other.leaves:
            raise ValueError(
                f"a union of two masks that look at the content cannot be computed, got {_names(self, other)}; "
                "combine them with &, or give each its own layers"
            )
        full = self.full | other.full if self.full and other.full else self.full or other.full
        return Graded(full, self.leaves or other.leaves, self.domain or other.domain)

    def __and__(self, other: Graded) -> Graded:
        if not (self.leaves and other.leaves):
            adaptive, static = (self, other.full) if self.leaves else (other, self.full)
            full = None if adaptive.full is None or static is None else adaptive.full & static
            assert static is not None
            return Graded(full, adaptive.leaves, None if adaptive.domain is None else adaptive.domain & static)
        if self.full is not None or other.full is not None:
            raise ValueError(
                f"an intersection of unions that look at the content cannot be computed, got {_names(self, other)}; "
                "write the static part outside, as in '(adaptive_span:max=512&relevance)|sinks:4'"
            )
        if {leaf.name for leaf in self.leaves} & {leaf.name for leaf in other.leaves}:
            raise ValueError(f"a mask that looks at the content can be there once, got {_names(self, other)}")
        assert self.domain is not None
        assert other.domain is not None
        domain = self.domain if self.domain == other.domain else self.domain & other.domain
        return Graded(None, (*self.leaves, *other.leaves), domain)

    def __sub__(self, other: Graded) -> Graded:
        if other.leaves or other.full is None:
            raise ValueError(f"only a static mask can be taken away, got {_names(other)} on the right of '-'")
        full = None if self.full is None else self.full - other.full
        return Graded(full, self.leaves, None if self.domain is None else self.domain - other.full)


def _names(*operands: Graded) -> str:
    return " and ".join("&".join(map(str, operand.leaves)) for operand in operands)
