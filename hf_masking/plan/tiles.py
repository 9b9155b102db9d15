"""The tiles of a batch that a mask touches, for block-sparse kernels such as FlexAttention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..masks import Mask, Tile
from ..masks.intervals import EVERY_KEY, Intervals, Lattice
from .documents import Documents, Segment
from .plan import pieces_of


def tiles_of_batch(mask: Mask, documents: Documents, block: int) -> Tensor:
    """Return whether NONE, SOME or ALL of each tile is allowed, int8 ``[B, query blocks, key blocks]``.

    It comes from the intervals of each document, never from pairs, and SOME may be cautious.

    Parameters:
        block: columns of the batch in a block of queries, and in one of keys.
    """
    rows, n_queries = documents.query_positions.shape
    n_keys = documents.key_positions.shape[1]
    tiles = torch.zeros(rows, -(-n_queries // block), -(-n_keys // block), dtype=torch.int8)
    for segment in documents.segments:
        for piece in pieces_of(mask, segment.lengths):
            mark = _tiles_of_piece(piece, segment, n_queries, n_keys, block)
            torch.maximum(tiles[segment.row], mark, out=tiles[segment.row])
    return tiles


def _tiles_of_piece(piece: Intervals, segment: Segment, n_queries: int, n_keys: int, block: int) -> Tensor:
    queries, keys = (_columns(columns, n) for columns, n in ((segment.queries, n_queries), (segment.keys, n_keys)))
    first, stop = (segment.lengths.keys_before(bound).long() for bound in (piece.first, piece.stop))
    seen = first < stop
    query_block, first, last = queries[seen] // block, keys[first[seen]], keys[stop[seen] - 1]
    n_blocks = -(-n_queries // block)

    def over_rows(values: Tensor, reduce: str, empty: int) -> Tensor:
        return torch.full((n_blocks,), empty).scatter_reduce(0, query_block, values, reduce)[:, None]

    starts = torch.arange(0, n_keys, block)
    ends = (starts + block).clamp(max=n_keys)
    some = (over_rows(first, "amin", n_keys) < ends) & (over_rows(last, "amax", -1) >= starts)
    if piece.lattice.keys != EVERY_KEY:
        of_class = piece.lattice.keys.contains(segment.lengths.key_positions())
        some &= torch.isin(starts // block, keys[of_class] // block)
    tiles = torch.where(some, Tile.SOME, Tile.NONE)
    if piece.guards or piece.lattice != Lattice() or not isinstance(segment.keys, slice):
        return tiles.to(torch.int8)
    heights = torch.arange(0, n_queries, block).neg().add(n_queries).clamp(max=block)
    every_row = torch.bincount(query_block, minlength=n_blocks) == heights
    inside = (over_rows(first, "amax", -1) <= starts) & (over_rows(last, "amin", n_keys) >= ends - 1)
    return torch.where(some & inside & every_row[:, None], Tile.ALL, tiles).to(torch.int8)


def _columns(columns: slice | Tensor, length: int) -> Tensor:
    return torch.arange(length)[columns]
