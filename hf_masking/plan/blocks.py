"""A part that is computed by matrix products: blocks of queries, each against a window of neighbouring keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..masks.intervals import Guard, Intervals
from .layout import Layout, Lengths, lay_out

BLOCK_SIZES = (16, 32, 64, 128, 256)
# What a pair costs in small blocks, whose matrix products are less efficient, against one in a block of 64 (measured).
_PAIR_COST = {16: 1.6, 32: 1.2, 64: 1.0, 128: 0.95, 256: 0.95}
# What starting the operations of a run costs, in pairs of a block of 64 (measured).
RUN_COST = 50_000
# The scores that one operation holds: they should stay in the processor's cache.
WORKSPACE = 2**20
# Few keys for many rows: the rows themselves should stay in the cache, too.
MOST_ROWS = 4096
# Matrix products and reductions run faster over multiples of this many keys.
_GRAIN = 16
_FAR = 2**30
_RUN_BYTES = 300  # memory of a run, whose fields are Python's integers


class Run(NamedTuple):
    """``blocks`` blocks of ``rows`` queries from row ``row`` on; block t sees the window from ``key + t * rows`` on.

    left, right: how many columns at either end of a window some row may not see.
    uniform: all blocks see the same columns of their windows.
    """

    row: int
    blocks: int
    rows: int
    key: int
    width: int
    left: int
    right: int
    uniform: bool


@dataclass(frozen=True, eq=False)
class Blocks:
    """Runs over a layout.

    first, stop: the interval of each row, int32 ``[C, q]``.
    weighted: the content gives each pair a weight, see `hf_masking.adaptive`.
    """

    layout: Layout
    first: Tensor
    stop: Tensor
    runs: tuple[Run, ...]
    guards: tuple[Guard, ...]
    lengths: Lengths
    weighted: bool = False

    @property
    def classes(self) -> int:
        return self.first.shape[0]

    @property
    def touched(self) -> int:
        """Pairs that are computed."""
        return self.classes * sum(run.blocks * run.rows * run.width for run in self.runs)

    @property
    def cost(self) -> float:
        """Time in pairs of a block of 64."""
        pairs = sum(run.blocks * run.rows * run.width * _pair_cost(run.rows) for run in self.runs)
        return self.classes * pairs * (4 if self.guards else 1) + RUN_COST * len(self.runs)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        columns = 0 if self.layout.columns is None else self.layout.columns.nbytes
        return self.first.nbytes + self.stop.nbytes + columns + _RUN_BYTES * len(self.runs)

    def __str__(self) -> str:
        blocks = sum(run.blocks for run in self.runs) * self.classes
        rows, widths = max(run.rows for run in self.runs), [run.width for run in self.runs]
        width = str(widths[0]) if min(widths) == max(widths) else f"{min(widths)} to {max(widths)}"
        classes = f" in {self.classes} classes" if self.classes > 1 else ""
        guards = ", behind a guard" if self.guards else ""
        return f"{blocks:,} block{'s' * (blocks > 1)} of up to {rows:,} queries x {width} keys{classes}{guards}"

    def positions(self) -> tuple[Tensor, Tensor]:
        """The positions of the rows and of the keys in this layout, ``[C, q]`` and ``[C, k]``."""
        q, k = self.lengths.query_positions()[:, None], self.lengths.key_positions()[:, None]
        return self.layout.queries(q)[..., 0], self.layout.keys(k)[..., 0]


def blocks_of(piece: Intervals, lengths: Lengths) -> Blocks | None:
    """The cheapest way of cutting a piece into blocks; None of an empty one."""
    layout, first, stop = lay_out(piece, lengths)
    if not bool((first < stop).any()):
        return None
    keys = layout.keys(torch.empty(lengths.keys, 1)).shape[-2]
    best = None
    for grid in _grids(first, stop, keys):
        cost = grid.cost()
        if best is None or cost < best[0]:
            best = cost, grid
    assert best is not None
    return Blocks(layout, first, stop, tuple(best[1].runs(first, stop)), piece.guards, lengths)


def _pair_cost(rows: int) -> float:
    return next((_PAIR_COST[size] for size in BLOCK_SIZES if rows <= size), _PAIR_COST[256])


@dataclass(frozen=True, eq=False)
class _Grid:
    """What the blocks of one size see: int32 ``[number of blocks]``, over all classes.

    lo, hi: the union of the rows' intervals (``lo >= hi`` is an empty block); inner_lo, inner_hi: their intersection.
    """

    size: int
    rows: int
    keys: int
    classes: int
    lo: Tensor
    hi: Tensor
    inner_lo: Tensor
    inner_hi: Tensor

    def coarser(self) -> _Grid:
        lo, inner_hi = (_pairs(x, _FAR).amin(-1) for x in (self.lo, self.inner_hi))
        hi, inner_lo = (_pairs(x, 0).amax(-1) for x in (self.hi, self.inner_lo))
        return _Grid(2 * self.size, self.rows, self.keys, self.classes, lo, hi, inner_lo, inner_hi)

    def cost(self) -> float:
        slide = self._slide()
        width = (self.hi - self.lo).clamp(min=0)
        if slide is not None:
            first, last, _, slide_width = slide
            pairs = (last - first) * slide_width + int(width[:first].sum()) + int(width[last:].sum())
            operations = len(width) - (last - first) + (last - first) * self.size * slide_width / WORKSPACE + 1
        else:
            pairs = int(width.sum())
            operations = int((width.diff() != 0).sum()) + 1 + pairs * self.size / WORKSPACE
        return self.classes * pairs * self.size * _PAIR_COST[self.size] + RUN_COST * operations

    def _slide(self) -> tuple[int, int, int, int] | None:
        """First and last block, offset and width of the windows, if the blocks' windows move along with the blocks."""
        start = torch.arange(len(self.lo), dtype=torch.int32) * self.size
        real = self.lo < self.hi
        if not bool(real.any()):
            return None
        offset = int((self.lo - start)[real].min())
        width = int((self.hi - start)[real].max()) - offset
        extra = -width % _GRAIN if width >= 4 * _GRAIN else 0
        width, offset = width + extra, offset - extra
        fits = real & (start + offset >= 0) & (start + offset + width <= self.keys) & (start + self.size <= self.rows)
        blocks = fits.nonzero()[:, 0]
        if len(blocks) < 2 or int(blocks[-1] - blocks[0]) != len(blocks) - 1:
            return None
        # One wide window for all would touch more than each block's own.
        if len(blocks) * width > 1.25 * int((self.hi - self.lo)[blocks].sum()):
            return None
        return int(blocks[0]), int(blocks[-1]) + 1, offset, width

    def runs(self, first: Tensor, stop: Tensor) -> Iterator[Run]:
        slide = self._slide()
        begin, end = (slide[0], slide[1]) if slide is not None else (len(self.lo), len(self.lo))
        yield from self._rectangles(0, begin)
        if slide is not None:
            yield from self._sliding(begin, end, slide[2], slide[3], first, stop)
        yield from self._rectangles(end, len(self.lo))

    def _sliding(self, begin: int, end: int, offset: int, width: int, first: Tensor, stop: Tensor) -> Iterator[Run]:
        start = torch.arange(begin, end, dtype=torch.int32) * self.size
        left = int((self.inner_lo[begin:end] - start - offset).max())
        right = int((start + offset + width - self.inner_hi[begin:end]).max())
        left, right = _edges(left, right, width)
        rows = slice(begin * self.size, end * self.size)
        relative = [(bound[:, rows].unflatten(1, (-1, self.size)) - start[:, None]) for bound in (first, stop)]
        uniform = all(bool((bound[:, 1:] == bound[:, :1]).all()) for bound in relative)
        step = max(1, WORKSPACE // (self.size * width))
        for block in range(begin, end, step):
            row = block * self.size
            yield Run(row, min(step, end - block), self.size, row + offset, width, left, right, uniform)

    def _rectangles(self, begin: int, end: int) -> Iterator[Run]:
        """Single blocks; neighbours with the same window become one, and what is too large is cut along the keys."""
        bounds = torch.stack([self.lo, self.hi, self.inner_lo, self.inner_hi])[:, begin:end].T.tolist()
        merged: list[list[int]] = []
        for index, (lo, hi, inner_lo, inner_hi) in enumerate(bounds):
            row = (begin + index) * self.size
            rows = min(self.size, self.rows - row)
            if lo >= hi:
                continue
            last = merged[-1] if merged else None
            if last and last[2:] == [lo, hi, inner_lo, inner_hi] and last[0] + last[1] == row:
                last[1] += rows
            else:
                merged.append([row, rows, lo, hi, inner_lo, inner_hi])
        for row, rows, lo, hi, inner_lo, inner_hi in merged:
            yield from _cut(row, rows, lo, hi, inner_lo, inner_hi)


def _cut(row: int, rows: int, lo: int, hi: int, inner_lo: int, inner_hi: int) -> Iterator[Run]:
    most_rows = min(MOST_ROWS, max(128, WORKSPACE // (hi - lo)))
    for start in range(row, row + rows, most_rows):
        height = min(most_rows, row + rows - start)
        most_keys = max(128, WORKSPACE // height)
        for key in range(lo, hi, most_keys):
            width = min(most_keys, hi - key)
            left, right = _edges(inner_lo - key, key + width - inner_hi, width)
            yield Run(start, 1, height, key, width, left, right, True)


def _edges(left: int, right: int, width: int) -> tuple[int, int]:
    left, right = min(max(left, 0), width), min(max(right, 0), width)
    return (width, 0) if left + right >= width else (left, right)


def _grids(first: Tensor, stop: Tensor, keys: int) -> Iterator[_Grid]:
    classes, rows = first.shape
    size = BLOCK_SIZES[0]
    missing = -rows % size
    empty = torch.nn.functional.pad(first >= stop, (0, missing), value=True)
    first, stop = (torch.nn.functional.pad(bound, (0, missing)) for bound in (first, stop))
    # The last block may lack rows; they narrow nothing, whereas a real row that sees nothing makes all of it an edge.
    lacking = torch.arange(rows + missing) >= rows
    lo, hi = torch.where(empty, _FAR, first), torch.where(empty, 0, stop)
    inner_lo, inner_hi = torch.where(empty, _FAR, first), torch.where(lacking, _FAR, stop)
    inner_lo = torch.where(lacking, 0, inner_lo)
    low, inner_high = (x.unflatten(1, (-1, size)).amin((0, 2)) for x in (lo, inner_hi))
    high, inner_low = (x.unflatten(1, (-1, size)).amax((0, 2)) for x in (hi, inner_lo))
    grid = _Grid(size, rows, keys, classes, low, high, inner_low, inner_high)
    yield grid
    while grid.size < BLOCK_SIZES[-1] and grid.size < rows:
        grid = grid.coarser()
        yield grid


def _pairs(x: Tensor, fill: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, len(x) % 2), value=fill).unflatten(0, (-1, 2))
