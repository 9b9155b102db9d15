"""A part in which each query has chosen its own blocks of keys: for each block the queries that chose it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adaptive import Selection
from ..masks import Mask, Tile
from .layout import Lengths

_ROWS = 64  # rows of a tile, over all query heads of its key head
_CHUNK = 1024  # queries that choose together, so that their scores stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Selected:
    """A part with the blocks that the queries of a document picked, for the query heads of one key head.

    Every pick, a query and a block, takes a slot of a tile. A tile has R slots for picks of one block; the last slots
    of the last tile of a block may be empty.

    block: number of keys in a block.
    blocks: the block of each tile ``[T]``, in order.
    rows: the query in each slot ``[T, R]``; any query in an empty one.
    taken: whether the slot is taken ``[T, R]``.
    places: the slots of each query ``[n, k]``, counted over all tiles; ``T * R`` where it picked fewer than k blocks.
    guard: the pairs of tokens that may be seen at all; None for all pairs.
    weighted: as in `Blocks`.
    """

    block: int
    blocks: Tensor
    rows: Tensor
    taken: Tensor
    places: Tensor
    guard: Mask | None
    lengths: Lengths
    weighted: bool

    @property
    def touched(self) -> int:
        """The number of pairs of tokens that are computed, for each query head."""
        return self.rows.numel() * self.block

    def positions(self, tiles: slice) -> tuple[Tensor, Tensor]:
        """Return the positions of the queries ``[t, R, 1]`` and the keys ``[t, 1, block]`` of some tiles."""
        within = torch.arange(self.block, device=self.rows.device)
        q, k = self.rows[tiles] + self.lengths.first_query, self.blocks[tiles, None] * self.block + within
        return q[:, :, None], k[:, None]


def selected(
    selection: Selection, queries: Tensor, keys: Tensor, lengths: Lengths, guard: Mask | None, *, weighted: bool
) -> list[Selected | None]:
    """Return for each key head the blocks that the queries of a document pick, without their own; None for no blocks.

    Parameters:
        queries: ``[G, H/G, N, D]``, the g query heads of each key head.
        keys: ``[G, M, D]``.
        guard: the pairs that may be seen; None for every one.

    Raises:
        ValueError: the first keys of the document are missing.
    """
    require_all_keys(selection, lengths)
    summaries = selection.summarize(keys)
    chosen, tiles = [], []
    for positions in _chunks(lengths, keys.device):
        rows = slice(int(positions[0]) - lengths.first_query, int(positions[-1]) + 1 - lengths.first_query)
        blocks = selection.choose(queries[:, :, rows], summaries, positions)
        if guard is not None:
            tiles.append(_tiles(guard, positions, selection.block, blocks))
            blocks = blocks.masked_fill(tiles[-1] == Tile.NONE, -1)
        chosen.append(blocks)
    whole = torch.cat(chosen, dim=1)
    if guard is not None and not any(bool((some == Tile.SOME).any()) for some in tiles):
        guard = None
    size = max(16, _ROWS // queries.shape[1])
    return [_tiled(blocks, selection.block, size, guard, lengths, weighted) for blocks in whole]


def require_all_keys(selection: Selection, lengths: Lengths) -> None:
    """Raise a ValueError if the first keys of a document are missing."""
    if lengths.first_key:
        raise ValueError(
            f"'{selection}' scores all blocks of a document, and the keys before position {lengths.first_key} are "
            "gone; use the default cache"
        )


def _chunks(lengths: Lengths, device: torch.device) -> Iterator[Tensor]:
    return iter(lengths.query_positions(device).long().split(_CHUNK))


def _tiles(guard: Mask, positions: Tensor, block: int, chosen: Tensor) -> Tensor:
    """Return which part of its picked blocks ``[..., n, k]`` each query may see, as tiles."""
    q, k = positions[:, None].expand_as(chosen), chosen.clamp(min=0) * block
    return torch.where(chosen < 0, Tile.NONE, guard.tiles(q, q + 1, k, k + block))


def _tiled(
    chosen: Tensor, block: int, size: int, guard: Mask | None, lengths: Lengths, weighted: bool
) -> Selected | None:
    """Sort the blocks that each query picked ``[n, k]`` into tiles; -1 stands for no block."""
    blocks, order = chosen.flatten().sort(stable=True)
    nothing = int((blocks < 0).sum())
    blocks, order = blocks[nothing:], order[nothing:]
    if not len(blocks):
        return None
    counts = torch.bincount(blocks)
    tiles = -(-counts // size)
    # The picks of a block follow each other, and start a new tile.
    starts = (tiles.cumsum(0) - tiles) * size - (counts.cumsum(0) - counts)
    slots = torch.arange(len(blocks), device=blocks.device) + starts[blocks]
    total = int(tiles.sum())
    rows, taken = slots.new_zeros(total * size), torch.zeros(total * size, dtype=torch.bool, device=slots.device)
    rows[slots], taken[slots] = order // chosen.shape[-1], True
    places = torch.full_like(chosen, total * size)
    places.view(-1)[order] = slots
    of_tiles = torch.arange(len(tiles), device=tiles.device).repeat_interleave(tiles)
    return Selected(block, of_tiles, rows.view(-1, size), taken.view(-1, size), places, guard, lengths, weighted)
