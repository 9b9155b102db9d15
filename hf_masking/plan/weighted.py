"""Parts whose pairs have weights: blocks as for a static mask, but only where a weight may be above 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..adaptive.weighting import TILE
from ..masks import Mask, Tile
from ..masks.intervals import Guard
from .blocks import Blocks, Run
from .cost_model import MOST_ROWS, WORKSPACE
from .cutting import blocks_of
from .layout import Layout, Lengths
from .memory import remember
from .plan import pieces_of


def weighted_blocks(mask: Mask, lengths: Lengths, reach: Tensor | None) -> tuple[Blocks, ...]:
    """Return the blocks of a mask without the pairs at a distance of ``reach`` (``[N or 1]``) or more."""
    if reach is None or len(reach) == 1:
        return _within(mask, lengths, None if reach is None else int(reach))
    return _blocks(mask, lengths, reach.cpu())


@remember(2**26, lambda parts: sum(part.nbytes for part in parts))
def _within(mask: Mask, lengths: Lengths, reach: int | None) -> tuple[Blocks, ...]:
    return _blocks(mask, lengths, None if reach is None else torch.tensor([reach]))


def _blocks(mask: Mask, lengths: Lengths, reach: Tensor | None) -> tuple[Blocks, ...]:
    pieces = pieces_of(mask, lengths)
    if reach is not None:
        nearest = (lengths.query_positions() - reach + 1).to(torch.int32)
        pieces = [replace(piece, first=torch.maximum(piece.first, nearest)) for piece in pieces]
    made = [blocks_of(piece, lengths) for piece in pieces if not piece.is_empty()]
    return tuple(replace(blocks, weighted=True) for blocks in made if blocks is not None)


def weighted_tiles(mask: Mask, lengths: Lengths, wanted: Tensor) -> tuple[Blocks, ...]:
    """Return the wanted tiles of a mask ``[queries / TILE, keys / TILE]``, neighbours in a row as one rectangle."""
    tiles = torch.where(wanted.cpu(), _tiles(mask, lengths), Tile.NONE)
    parts = []
    for kind, guards in ((Tile.ALL, ()), (Tile.SOME, (Guard(mask, True),))):
        runs = tuple(_rectangles(tiles == kind, lengths))
        if runs:
            # Nothing asks for the bounds of single rows, since no column of a run is at an edge.
            bounds = torch.zeros(1, lengths.queries, dtype=torch.int32)
            parts.append(Blocks(Layout(), bounds, bounds + lengths.keys, runs, guards, lengths, weighted=True))
    return tuple(parts)


@remember(2**26, lambda tiles: tiles.nbytes)
def _tiles(mask: Mask, lengths: Lengths) -> Tensor:
    q = torch.arange(0, lengths.queries, TILE)[:, None]
    k = torch.arange(0, lengths.keys, TILE)[None]
    q_hi, k_hi = (q + TILE).clamp(max=lengths.queries), (k + TILE).clamp(max=lengths.keys)
    return mask.tiles(*(x + lengths.first_query for x in (q, q_hi)), *(x + lengths.first_key for x in (k, k_hi)))


def _rectangles(tiles: Tensor, lengths: Lengths) -> Iterator[Run]:
    """Yield a rectangle for each stretch of tiles in a row; equal stretches below each other become one."""
    open_: dict[tuple[int, int], int] = {}
    most = max(1, min(MOST_ROWS, WORKSPACE // max(1, lengths.keys)) // TILE)
    last = tiles.shape[0]
    edges = torch.nn.functional.pad(tiles.to(torch.int8), (1, 1)).diff(dim=1)
    for row in range(last + 1):
        starts, stops = ([], []) if row == last else ((edges[row] == sign).nonzero()[:, 0].tolist() for sign in (1, -1))
        stretches = set(zip(starts, stops, strict=True))
        for stretch, first in list(open_.items()):
            if stretch not in stretches or row - first == most:
                yield _run(first, row, stretch, lengths)
                del open_[stretch]
        for stretch in stretches:
            open_.setdefault(stretch, row)


def _run(first: int, stop: int, stretch: tuple[int, int], lengths: Lengths) -> Run:
    row, key = first * TILE, stretch[0] * TILE
    rows, width = min(stop * TILE, lengths.queries) - row, min(stretch[1] * TILE, lengths.keys) - key
    return Run(first_row=row, blocks=1, rows=rows, first_key=key, width=width, left=0, right=0, uniform=True)
