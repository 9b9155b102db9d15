"""How a mask that looks at the content is cut into parts: what is sure of weight 1, what is weighed, what is chosen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import Causal, Mask, SlidingWindow
from ..masks.normal_form import NormalForm
from ..plan import Part, Segment, Selected, plan_of
from ..plan.selected import selected
from ..plan.weighted import weighted_blocks, weighted_tiles


@dataclass(frozen=True, eq=False)
class Document:
    """One document of one row: query ``[Hq, m, D]``, key ``[Hkv, n, D]``, and what the mask's leaves have read of it.

    features: those of each leaf, query ``[Hq, m, r]`` and key ``[Hkv, n, s]``.
    """

    segment: Segment
    query: Tensor
    key: Tensor
    features: tuple[Features, ...]

    @property
    def group(self) -> int:
        return self.query.shape[0] // self.key.shape[0]


def parts_by_heads(mask: Mask, document: Document) -> Iterator[tuple[slice, tuple[Part | Selected, ...]]]:
    """The parts of some query heads after the other."""
    graded = document.segment.bind(mask).normal_form()
    chosen = _chosen(graded, document)
    lanes = [
        leaf.lanes(read, len(document.query), document.group)
        for leaf, read in zip(graded.leaves, document.features, strict=True)
    ]
    for _, run in itertools.groupby(range(len(document.query)), key=list(zip(*lanes, strict=True)).__getitem__):
        first, *others = run
        heads = slice(first, (others or [first])[-1] + 1)
        yield heads, tuple(_parts(graded, document, heads, chosen))


def _parts(
    graded: NormalForm, document: Document, heads: slice, chosen: list[Selected | None] | None
) -> Iterator[Part | Selected]:
    lengths = document.segment.lengths
    sure = _with_certain(graded, document, heads)
    if sure.full is not None:
        yield from plan_of(sure.full, lengths).parts
    weighed = list(zip(graded.leaves, document.features, strict=True))
    reaches = [reach for leaf, read in weighed if (reach := leaf.reach(read, heads)) is not None]
    reach = functools.reduce(torch.minimum, reaches) if reaches else None
    if chosen is not None:
        if len(weighed) > 1:
            # A query's own block is chosen, too; where only the choice decides, that was sure of weight 1.
            own = next(leaf.certain(read, heads) for leaf, read in weighed if leaf.selects)
            yield from weighted_blocks(sure.rest & own, lengths, reach)
        if (part := chosen[heads.start // document.group]) is not None:
            yield part
        return
    counting = [leaf.tiles_that_count(read, heads, document.group) for leaf, read in weighed]
    counting = [tiles for tiles in counting if tiles is not None]
    if counting:
        # What another leaf rules out by distance is not looked at.
        rest = sure.rest if reach is None else sure.rest & SlidingWindow(max(1, int(reach.max())))
        yield from weighted_tiles(rest, lengths, functools.reduce(torch.logical_and, counting))
    else:
        yield from weighted_blocks(sure.rest, lengths, reach)


def _with_certain(graded: NormalForm, document: Document, heads: slice) -> NormalForm:
    """The same, with what the leaves are sure of."""
    assert graded.domain is not None
    certain: Mask | None = None
    for leaf, read in zip(graded.leaves, document.features, strict=True):
        sure = leaf.certain(read, heads)
        if sure is None:
            return graded
        certain = sure if certain is None else certain & sure
    assert certain is not None
    if graded.domain != Causal():
        certain = certain & graded.domain
    return replace(graded, full=certain if graded.full is None else graded.full | certain)


def _chosen(graded: NormalForm, document: Document) -> list[Selected | None] | None:
    """What the queries choose, for each key head; None where no leaf lets them."""
    leaf = next((leaf for leaf in graded.leaves if leaf.selects), None)
    if leaf is None:
        return None
    queries = document.query.unflatten(0, (-1, document.group))
    everything = graded.domain == Causal() and graded.full is None
    guard = None if everything else graded.rest
    return selected(leaf, queries, document.key, document.segment.lengths, guard, weighted=len(graded.leaves) > 1)
