"""Cut an adaptive mask into parts: pairs of weight 1, pairs with a weight, and blocks that queries pick."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adaptive import Features, Weighting
from ..masks import Causal, Mask, SlidingWindow
from ..masks.normal_form import NormalForm
from .blocks import Blocks
from .documents import Segment
from .layout import Lengths
from .plan import Part, plan_of
from .selected import Selected, selected
from .weighted import weighted_blocks, weighted_tiles


@dataclass(frozen=True, eq=False)
class Document:
    """One document of one row: query ``[H, n, D]``, key ``[G, m, D]``, and the features of its tokens.

    features: of each weighting of the mask, query ``[H, n, r]`` and key ``[G, m, s]``.
    """

    segment: Segment
    query: Tensor
    key: Tensor
    features: tuple[Features, ...]

    @property
    def group(self) -> int:
        """The number of query heads that share a key head."""
        return self.query.shape[0] // self.key.shape[0]


def parts_by_heads(mask: Mask, document: Document) -> Iterator[tuple[slice, tuple[Part | Selected, ...]]]:
    """Yield neighbouring query heads that share a plan, and the disjoint parts of the plan."""
    form = document.segment.bind(mask).normal_form()
    picked = _picked_blocks(form, document)
    for heads in _runs_of_equal(_plan_keys(form, document)):
        yield heads, tuple(_parts(_with_certain(form, document, heads), document, heads, picked))


def _plan_keys(form: NormalForm, document: Document) -> list[Hashable]:
    """Return a value for each query head; heads with equal values share a plan."""
    heads, group = len(document.query), document.group
    keys = [weighting.plan_keys(features, heads, group) for weighting, features in _weightings(form, document)]
    if form.selection is not None:
        keys.append([head // group for head in range(heads)])
    return list(zip(*keys, strict=True))


def _runs_of_equal(values: Sequence[Hashable]) -> Iterator[slice]:
    """Yield the stretches of neighbouring equal values."""
    first = 0
    for _, run in itertools.groupby(values):
        stop = first + len(list(run))
        yield slice(first, stop)
        first = stop


def _weightings(form: NormalForm, document: Document) -> list[tuple[Weighting, Features]]:
    """Return each weighting with its features."""
    return list(zip(form.weights, document.features, strict=True))


def _parts(
    form: NormalForm, document: Document, heads: slice, picked: list[Selected | None]
) -> Iterator[Part | Selected]:
    """Yield the parts of weight 1, and then those whose weights a weighting or a selection decides."""
    lengths = document.segment.lengths
    if form.full is not None:
        yield from plan_of(form.full, lengths).parts
    reach = _reach(form, document, heads)
    if form.selection is not None:
        yield from _selected_parts(form, lengths, reach, picked[heads.start // document.group])
    elif (tiles := _tiles_that_count(form, document, heads)) is not None:
        yield from _tiled_parts(form, lengths, reach, tiles)
    else:
        yield from weighted_blocks(form.rest, lengths, reach)


def _selected_parts(
    form: NormalForm, lengths: Lengths, reach: Tensor | None, picked: Selected | None
) -> Iterator[Blocks | Selected]:
    """Yield the blocks that the queries picked, and their own blocks, unless these have weight 1."""
    if form.weights:
        assert form.selection is not None
        yield from weighted_blocks(form.rest & form.selection.own_block, lengths, reach)
    if picked is not None:
        yield picked


def _tiled_parts(form: NormalForm, lengths: Lengths, reach: Tensor | None, tiles: Tensor) -> Iterator[Blocks]:
    """Yield the tiles with a weight above 0, within the distance at which another weighting ends."""
    rest = form.rest if reach is None else form.rest & SlidingWindow(max(1, int(reach.max())))
    yield from weighted_tiles(rest, lengths, tiles)


def _reach(form: NormalForm, document: Document, heads: slice) -> Tensor | None:
    """Return the distance from which on the product of all weights is 0; None for never."""
    reaches = [weighting.reach(features, heads) for weighting, features in _weightings(form, document)]
    known = [reach for reach in reaches if reach is not None]
    return functools.reduce(torch.minimum, known) if known else None


def _tiles_that_count(form: NormalForm, document: Document, heads: slice) -> Tensor | None:
    """Return the tiles in which the product of all weights may be above 0; None if that is not known."""
    tiles = [
        weighting.tiles_that_count(features, heads, document.group)
        for weighting, features in _weightings(form, document)
    ]
    known = [some for some in tiles if some is not None]
    return functools.reduce(torch.logical_and, known) if known else None


def _with_certain(form: NormalForm, document: Document, heads: slice) -> NormalForm:
    """Return the same with the pairs in ``full`` to which all weightings give weight 1."""
    assert form.domain is not None
    certain = [weighting.certain(features, heads) for weighting, features in _weightings(form, document)]
    if form.selection is not None:
        certain.append(form.selection.own_block)
    known = [mask for mask in certain if mask is not None]
    if len(known) < len(certain):
        return form
    inside = functools.reduce(lambda one, other: one & other, known)
    if form.domain != Causal():
        inside = inside & form.domain
    return replace(form, full=inside if form.full is None else form.full | inside)


def _picked_blocks(form: NormalForm, document: Document) -> list[Selected | None]:
    """Return the blocks that the queries pick, for each key head; nothing without a selection."""
    if form.selection is None:
        return []
    queries = document.query.unflatten(0, (-1, document.group))
    everything = form.domain == Causal() and form.full is None
    guard = None if everything else form.rest
    lengths = document.segment.lengths
    return selected(form.selection, queries, document.key, lengths, guard, weighted=bool(form.weights))
