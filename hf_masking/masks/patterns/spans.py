"""Marked spans, each of them bidirectional."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..marks import Bounds, Marks
from ..pattern import require_int
from ..progression import FOREVER
from .bidirectional import Bidirectional


@dataclass(frozen=True)
class Spans(Bidirectional):
    """The tokens of each marked span see each other bidirectionally: images, tables, retrieved passages.

    ``spans|causal`` is causal text with spans that are read as a whole (Transfusion's mask for images: Zhou et al.,
    https://arxiv.org/abs/2408.11039). A prefix is the span that starts at 0.

    Parameters:
        edges: first position of each span and the one after its last, in ascending order. By default they come with
            the batch: ``span_ids=`` of a patched model's forward. Empty spans are dropped.

    ``spans:0,2,3,5``::

        1 1 0 0 0 0
        1 1 0 0 0 0
        0 0 0 0 0 0
        0 0 0 1 1 0
        0 0 0 1 1 0
        0 0 0 0 0 0
    """

    edges: tuple[int, ...] | None = None

    name: ClassVar[str] = "spans"

    def __post_init__(self) -> None:
        if self.edges is None:
            return
        edges = tuple(self.edges)
        for edge in edges:
            require_int("spans: each edge", edge, 0, FOREVER)
        pairs = list(zip(edges[::2], edges[1::2], strict=False))
        if len(edges) % 2 or any(start > stop for start, stop in pairs):
            raise ValueError(f"spans: expected pairs of a first position and the one after the last, got {edges}")
        if list(edges) != sorted(edges):
            raise ValueError(f"spans: expected ascending spans that do not overlap, got {edges}")
        kept = itertools.chain.from_iterable(pair for pair in pairs if pair[0] < pair[1])
        object.__setattr__(self, "edges", tuple(kept))

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Spans:
        if keywords:
            raise ValueError(f"spans: expected positions only, got {next(iter(keywords))}=...")
        return cls(arguments or None)

    def arguments(self) -> tuple[Any, ...]:
        # No spans at all are one empty span, since `spans` alone is a mask that needs marks.
        return () if self.edges is None else self.edges or (0, 0)

    @property
    def bounds(self) -> Bounds | None:
        return None if self.edges is None else tuple(zip(self.edges[::2], self.edges[1::2], strict=True))

    def bind(self, marks: Marks) -> Spans:
        return Spans(tuple(itertools.chain.from_iterable(marks.spans))) if self.needs else self
