"""One mask in each document of a batch, with its plan."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from ..masks import Mask, MaskExpression
from .documents import Documents, Segment
from .layout import Lengths
from .plan import Plan, is_causal, plan_of


@dataclass(frozen=True, eq=False)
class DocumentMask:
    """The mask of some query heads in one document; its plan is made when it is first asked for."""

    segment: Segment
    heads: slice
    mask: Mask

    @property
    def lengths(self) -> Lengths:
        return self.segment.lengths

    @functools.cached_property
    def plan(self) -> Plan:
        """How to compute it block by block."""
        return plan_of(self.mask, self.lengths)

    @functools.cached_property
    def is_causal(self) -> bool:
        """True if it is the whole of causal at these lengths."""
        return is_causal(self.mask, self.lengths)


def document_masks(mask: MaskExpression, documents: Documents, n_heads: int) -> Iterator[DocumentMask]:
    """Yield the mask of each document and of each group of query heads, document by document.

    Raises:
        ValueError: the positions of a document's tokens have gaps.
    """
    members = mask.heads
    size = n_heads // len(members)
    for segment in documents.segments:
        for index, member in enumerate(members):
            yield DocumentMask(segment, slice(index * size, (index + 1) * size), segment.bind(member))
