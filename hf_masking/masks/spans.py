"""Marked spans, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .both_ways import BothWays, Bounds
from .mask import require_int
from .prefix import Prefix
from .progression import FOREVER


@dataclass(frozen=True)
class Spans(BothWays):
    """The tokens of one span see each other both ways, for every marked span: images, tables, retrieved passages.

    ``spans|causal`` is causal text with spans that are read as a whole (Transfusion's mask for images: Zhou et al.,
    https://arxiv.org/abs/2408.11039). A prefix is the span that starts at 0.

    Parameters:
        edges: first position and the one behind the last of each span, in ascending order. By default they come with
            the batch: ``span_ids=`` of a patched model's forward.

    ``spans:0,2,3,5``::

        1 1 0 0 0 0
        1 1 0 0 0 0
        0 0 0 0 0 0
        0 0 0 1 1 0
        0 0 0 1 1 0
        0 0 0 0 0 0
    """

    edges: tuple[int, ...] = ()

    name: ClassVar[str] = "spans"

    def __post_init__(self) -> None:
        edges = tuple(self.edges)
        for edge in edges:
            require_int("spans: each edge", edge, 0, FOREVER)
        if len(edges) % 2 or any(start >= stop for start, stop in zip(edges[::2], edges[1::2], strict=True)):
            raise ValueError(f"spans: expected pairs of a first position and the one behind the last, got {edges}")
        if list(edges) != sorted(edges):
            raise ValueError(f"spans: expected ascending spans that do not overlap, got {edges}")
        object.__setattr__(self, "edges", edges)

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Spans:
        if keywords:
            raise ValueError(f"spans: expected positions only, got {next(iter(keywords))}=...")
        return cls(arguments)

    def arguments(self) -> tuple[Any, ...]:
        return self.edges

    @property
    def bounds(self) -> Bounds | None:
        return tuple(zip(self.edges[::2], self.edges[1::2], strict=True)) or None

    def bind(self, spans: Bounds) -> BothWays:
        if self.is_bound:
            return self
        # Without edges it would be unbound again; the set without pairs has another name.
        return Spans(tuple(edge for span in spans for edge in span)) if spans else Prefix(0)
