"""The normal form of a composition of static and adaptive masks.

An adaptive mask gives each pair a weight from 0 to 1 (0 or 1 if it selects blocks). Union is the greater weight,
intersection the product, and a static mask is one whose weights are 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mask import Mask


@dataclass(frozen=True)
class NormalForm:
    """The weight of a pair: 1 where ``full`` allows it, else the product of all adaptive weights inside ``domain``.

    full: static; None where no pair has weight 1 for certain.
    weights, selection: the adaptive masks (`hf_masking.adaptive` defines their classes, `Weighting` and `Selection`).
        Without any, ``full`` is the whole mask.
    domain: static; the pairs whose weight the adaptive masks decide, unless ``full`` allows them.
    """

    full: Mask | None = None
    weights: tuple[Any, ...] = ()
    selection: Any | None = None
    domain: Mask | None = None

    @property
    def adaptive(self) -> tuple[Any, ...]:
        """All adaptive masks."""
        return self.weights if self.selection is None else (*self.weights, self.selection)

    @property
    def bound(self) -> Mask:
        """A static mask outside of which every weight is 0."""
        bound = self.full | self.domain if self.full and self.domain else self.full or self.domain
        assert bound is not None
        return bound

    @property
    def rest(self) -> Mask:
        """The pairs whose weight the adaptive masks decide."""
        assert self.domain is not None
        return self.domain if self.full is None else self.domain - self.full

    def __or__(self, other: NormalForm) -> NormalForm:
        if self.adaptive and other.adaptive:
            raise ValueError(
                f"a union of two adaptive masks cannot be computed, got {_names(self, other)}; combine them with &, or "
                "give each its own layers"
            )
        full = self.full | other.full if self.full and other.full else self.full or other.full
        adaptive = self if self.adaptive else other
        return replace(adaptive, full=full)

    def __and__(self, other: NormalForm) -> NormalForm:
        if self.adaptive and other.adaptive:
            return self._product(other)
        adaptive, static = (self, other.full) if self.adaptive else (other, self.full)
        assert static is not None
        full = None if adaptive.full is None else adaptive.full & static
        return replace(adaptive, full=full, domain=None if adaptive.domain is None else adaptive.domain & static)

    def _product(self, other: NormalForm) -> NormalForm:
        if self.full is not None or other.full is not None:
            raise ValueError(
                f"an intersection of adaptive masks that are in a union cannot be computed, got {_names(self, other)}; "
                "write the static part outside, as in '(adaptive_span:max=512&relevance)|sinks:4'"
            )
        if {mask.name for mask in self.adaptive} & {mask.name for mask in other.adaptive}:
            raise ValueError(f"an adaptive mask may appear once, got {_names(self, other)}")
        if self.selection and other.selection:
            raise ValueError(f"only one mask may select blocks, got {_names(self, other)}; give each its own layers")
        assert self.domain is not None
        assert other.domain is not None
        domain = self.domain if self.domain == other.domain else self.domain & other.domain
        return NormalForm(None, (*self.weights, *other.weights), self.selection or other.selection, domain)

    def __sub__(self, other: NormalForm) -> NormalForm:
        if other.adaptive or other.full is None:
            raise ValueError(f"only a static mask can be subtracted, got {_names(other)} on the right of '-'")
        full = None if self.full is None else self.full - other.full
        return replace(self, full=full, domain=None if self.domain is None else self.domain - other.full)


def _names(*operands: NormalForm) -> str:
    return " and ".join("&".join(map(str, operand.adaptive)) for operand in operands)
