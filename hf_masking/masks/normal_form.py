"""The normal form of a composition of static and adaptive masks.

An adaptive mask gives each pair a weight from 0 to 1. Union is the greater weight, intersection the product, and a
static mask is one whose weights are 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mask import Mask


@dataclass(frozen=True)
class NormalForm:
    """The weight of a pair: 1 where ``full`` allows it, else the product of the leaves' weights inside ``domain``.

    full: static; None where no pair has weight 1 for certain.
    leaves: the adaptive masks, in order (`hf_masking.adaptive`, which is built on this module, defines them); without
        any, ``full`` is all there is.
    domain: static; the pairs whose weight the leaves may decide.
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

    def __or__(self, other: NormalForm) -> NormalForm:
        if self.leaves and other.leaves:
            raise ValueError(
                f"a union of two adaptive masks cannot be computed, got {_names(self, other)}; combine them with &, or "
                "give each its own layers"
            )
        full = self.full | other.full if self.full and other.full else self.full or other.full
        return NormalForm(full, self.leaves or other.leaves, self.domain or other.domain)

    def __and__(self, other: NormalForm) -> NormalForm:
        if not (self.leaves and other.leaves):
            adaptive, static = (self, other.full) if self.leaves else (other, self.full)
            full = None if adaptive.full is None or static is None else adaptive.full & static
            assert static is not None
            return NormalForm(full, adaptive.leaves, None if adaptive.domain is None else adaptive.domain & static)
        if self.full is not None or other.full is not None:
            raise ValueError(
                f"an intersection of adaptive masks that are in a union cannot be computed, got {_names(self, other)}; "
                "write the static part outside, as in '(adaptive_span:max=512&relevance)|sinks:4'"
            )
        if {leaf.name for leaf in self.leaves} & {leaf.name for leaf in other.leaves}:
            raise ValueError(f"an adaptive mask may appear once, got {_names(self, other)}")
        assert self.domain is not None
        assert other.domain is not None
        domain = self.domain if self.domain == other.domain else self.domain & other.domain
        return NormalForm(None, (*self.leaves, *other.leaves), domain)

    def __sub__(self, other: NormalForm) -> NormalForm:
        if other.leaves or other.full is None:
            raise ValueError(f"only a static mask can be subtracted, got {_names(other)} on the right of '-'")
        full = None if self.full is None else self.full - other.full
        return NormalForm(full, self.leaves, None if self.domain is None else self.domain - other.full)


def _names(*operands: NormalForm) -> str:
    return " and ".join("&".join(map(str, operand.leaves)) for operand in operands)
