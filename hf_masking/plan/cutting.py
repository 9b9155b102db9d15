"""The cheapest way to cut the intervals of a mask into blocks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..masks.intervals import Intervals
from .blocks import Blocks, Run
from .cost_model import BLOCK_SIZES, MOST_ROWS, OPERATION, WORKSPACE, pair_cost
from .layout import Lengths, lay_out

# Matrix products and reductions run faster over multiples of this many keys.
_GRAIN = 16
# What is too large for one operation is cut into no fewer rows, and no fewer keys, than this.
_FEWEST = 128
# How many times the pairs of each block's own slab may be touched, so that the slabs of a run have one width.
_MOST_WASTE = 1.25
_FAR = 2**30  # after every key


def blocks_of(piece: Intervals, lengths: Lengths) -> Blocks | None:
    """Return the cheapest way found to cut a piece into blocks; None for an empty piece."""
    layout, first, stop = lay_out(piece, lengths)
    if not bool((first < stop).any()):
        return None
    keys = layout.keys(torch.empty(lengths.keys, 1)).shape[-2]
    grid = min(_grids(first, stop, keys), key=_Grid.cost)
    return Blocks(layout, first, stop, tuple(grid.runs(first, stop)), piece.guards, lengths)


class _Slab(NamedTuple):
    """The keys that one block needs: from ``first`` to ``stop``, the union of the intervals of its rows.

    Every row of the block may attend to the core, the intersection of the intervals:

        first         core_first         core_stop          stop
          |- left edge -|------- core -------|- right edge -|
    """

    first: int
    stop: int
    core_first: int
    core_stop: int

    def run(self, first_row: int, rows: int, first_key: int, width: int) -> Run:
        """Return the run that computes these rows against some of the keys."""
        left, right = _edges(self.core_first - first_key, first_key + width - self.core_stop, width)
        return Run(
            first_row=first_row,
            blocks=1,
            rows=rows,
            first_key=first_key,
            width=width,
            left=left,
            right=right,
            uniform=True,
        )


# What stands for rows that the last block lacks: it changes neither the union nor the intersection.
_NEUTRAL = _Slab(first=_FAR, stop=0, core_first=0, core_stop=_FAR)


class _Slabs(NamedTuple):
    """The slabs of neighbouring blocks, int32 ``[blocks]`` each."""

    first: Tensor
    stop: Tensor
    core_first: Tensor
    core_stop: Tensor

    @classmethod
    def of_rows(cls, first: Tensor, stop: Tensor) -> _Slabs:
        """Return the slabs of single rows ``[N/C]``, over all classes, from their intervals ``[C, N/C]``."""
        empty = first >= stop
        far = first.masked_fill(empty, _FAR)  # an empty interval empties the intersection, and adds nothing to a union
        return cls(far.amin(0), stop.masked_fill(empty, 0).amax(0), far.amax(0), stop.amin(0))

    def grouped(self, size: int) -> _Slabs:
        """Return the slabs of blocks that are each made of ``size`` neighbours."""
        missing = -len(self.first) % size
        padded = (pad(x, (0, missing), value=fill) for x, fill in zip(self, _NEUTRAL, strict=True))
        first, stop, core_first, core_stop = (x.unflatten(0, (-1, size)) for x in padded)
        return _Slabs(first.amin(-1), stop.amax(-1), core_first.amax(-1), core_stop.amin(-1))

    def tolist(self, begin: int, end: int) -> list[_Slab]:
        return [_Slab(*bounds) for bounds in torch.stack(self)[:, begin:end].T.tolist()]


class _Slide(NamedTuple):
    """Slabs of one width that move along with their blocks: block t has that from ``t * size + offset`` on."""

    first_block: int
    stop_block: int
    offset: int
    width: int


@dataclass(frozen=True, eq=False)
class _Grid:
    """All rows of a layout in blocks of one size, and their slabs over all classes."""

    size: int
    rows: int
    keys: int
    classes: int
    slabs: _Slabs

    def coarser(self) -> _Grid:
        return _Grid(2 * self.size, self.rows, self.keys, self.classes, self.slabs.grouped(2))

    def cost(self) -> float:
        """Return the time of this grid, see `cost_model`."""
        widths, slide = (self.slabs.stop - self.slabs.first).clamp(min=0), self.slide
        if slide is None:
            keys = int(widths.sum())
            operations = int((widths.diff() != 0).sum()) + 1 + keys * self.size / WORKSPACE
        else:
            blocks = slide.stop_block - slide.first_block
            outside = int(widths[: slide.first_block].sum()) + int(widths[slide.stop_block :].sum())
            keys = blocks * slide.width + outside
            operations = len(widths) - blocks + blocks * self.size * slide.width / WORKSPACE + 1
        return self.classes * keys * self.size * pair_cost(self.size) + OPERATION * operations

    @functools.cached_property
    def slide(self) -> _Slide | None:
        """The blocks whose slabs move along with them; None where that is not one stretch of blocks."""
        first, stop = self.slabs.first, self.slabs.stop
        start = torch.arange(len(first), dtype=torch.int32) * self.size
        real = first < stop
        if not bool(real.any()):
            return None
        offset = int((first - start)[real].min())
        width = int((stop - start)[real].max()) - offset
        extra = -width % _GRAIN if width >= 4 * _GRAIN else 0
        width, offset = width + extra, offset - extra
        fits = real & (start + offset >= 0) & (start + offset + width <= self.keys) & (start + self.size <= self.rows)
        blocks = fits.nonzero()[:, 0]
        if len(blocks) < 2 or int(blocks[-1] - blocks[0]) != len(blocks) - 1:
            return None
        if len(blocks) * width > _MOST_WASTE * int((stop - first)[blocks].sum()):
            return None
        return _Slide(int(blocks[0]), int(blocks[-1]) + 1, offset, width)

    def runs(self, first: Tensor, stop: Tensor) -> Iterator[Run]:
        """Yield the runs of this grid, given the interval of each row."""
        blocks = len(self.slabs.first)
        if self.slide is None:
            yield from self._rectangles(0, blocks)
            return
        yield from self._rectangles(0, self.slide.first_block)
        yield from self._sliding(self.slide, first, stop)
        yield from self._rectangles(self.slide.stop_block, blocks)

    def _sliding(self, slide: _Slide, first: Tensor, stop: Tensor) -> Iterator[Run]:
        """Yield runs of blocks whose slabs move along with them, each as long as an operation may be."""
        blocks = slice(slide.first_block, slide.stop_block)
        start = torch.arange(blocks.start, blocks.stop, dtype=torch.int32) * self.size
        first_key = start + slide.offset
        left, right = _edges(
            int((self.slabs.core_first[blocks] - first_key).max()),
            int((first_key + slide.width - self.slabs.core_stop[blocks]).max()),
            slide.width,
        )
        rows = slice(blocks.start * self.size, blocks.stop * self.size)
        relative = [bound[:, rows].unflatten(1, (-1, self.size)) - start[:, None] for bound in (first, stop)]
        uniform = all(bool((bound[:, 1:] == bound[:, :1]).all()) for bound in relative)
        step = max(1, WORKSPACE // (self.size * slide.width))
        for block in range(blocks.start, blocks.stop, step):
            yield Run(
                first_row=block * self.size,
                blocks=min(step, blocks.stop - block),
                rows=self.size,
                first_key=block * self.size + slide.offset,
                width=slide.width,
                left=left,
                right=right,
                uniform=uniform,
            )

    def _rectangles(self, begin: int, end: int) -> Iterator[Run]:
        """Yield single blocks; neighbours with the same slab become one, and what is too large is cut."""
        merged: list[_Rectangle] = []
        for index, slab in enumerate(self.slabs.tolist(begin, end), start=begin):
            row = index * self.size
            block = _Rectangle(row, min(row + self.size, self.rows), slab)
            if merged and (merged[-1].slab, merged[-1].stop_row) == (slab, row):
                block = merged.pop()._replace(stop_row=block.stop_row)
            if slab.first < slab.stop:
                merged.append(block)
        for rectangle in merged:
            yield from rectangle.cut()


class _Rectangle(NamedTuple):
    """The rows from ``row`` to ``stop_row``, which have the same slab."""

    row: int
    stop_row: int
    slab: _Slab

    def cut(self) -> Iterator[Run]:
        """Yield runs that are not larger than an operation may be."""
        slab = self.slab
        most_rows = min(MOST_ROWS, max(_FEWEST, WORKSPACE // (slab.stop - slab.first)))
        for row in range(self.row, self.stop_row, most_rows):
            rows = min(most_rows, self.stop_row - row)
            most_keys = max(_FEWEST, WORKSPACE // rows)
            for key in range(slab.first, slab.stop, most_keys):
                yield slab.run(row, rows, key, min(most_keys, slab.stop - key))


def _edges(left: int, right: int, width: int) -> tuple[int, int]:
    """Return how many columns of a slab are left and right of its core; all of them are left where there is none."""
    left, right = min(max(left, 0), width), min(max(right, 0), width)
    return (width, 0) if left + right >= width else (left, right)


def _grids(first: Tensor, stop: Tensor, keys: int) -> Iterator[_Grid]:
    """Yield the grids of all block sizes, from the finest to the first that holds all rows."""
    classes, rows = first.shape
    size = BLOCK_SIZES[0]
    grid = _Grid(size, rows, keys, classes, _Slabs.of_rows(first, stop).grouped(size))
    yield grid
    while grid.size < BLOCK_SIZES[-1] and grid.size < rows:
        grid = grid.coarser()
        yield grid
