"""The bias of a run: -inf for the pairs of its tiles that the mask excludes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..plan.blocks import Blocks, Run
from .tile_batch import TileBatch, tile_positions


class DenseBias(NamedTuple):
    """The bias of every column ``[T, rows, width]``, and the rows that may attend to nothing ``[T, rows, 1]``."""

    values: Tensor
    blind: Tensor


class _Columns(NamedTuple):
    """The bias of some columns of the slabs, ``[C, blocks or 1, rows, columns]``."""

    columns: slice
    values: Tensor


class RunBias:
    """The bias of a run, for all heads: only of the columns at the edges of the slabs, unless there are guards."""

    def __init__(self, part: Blocks, run: Run, like: Tensor) -> None:
        edges = slice(0, run.left), slice(run.width - run.right, run.width)
        self.run = run
        self.parts = [_edge(part, run, columns, like) for columns in edges if columns.start < columns.stop]
        if part.guards:
            self.parts.append(_guard(part, run, like))
        self._dense: dict[int, tuple[Tensor, Tensor]] = {}  # by the first class, for all heads

    def add_to(self, scores: Tensor, tiles: TileBatch) -> None:
        """Add it to scores ``[heads, classes, blocks, rows, width]``."""
        for columns, values in self.parts:
            scores[..., columns].add_(values[tiles.classes])

    def dense(self, tiles: TileBatch) -> DenseBias | None:
        """Return it as a tensor for some tiles; None if nothing is excluded."""
        if not self.parts:
            return None
        if tiles.classes.start not in self._dense:
            self._dense[tiles.classes.start] = self._of_classes(tiles)
        whole, blind = self._dense[tiles.classes.start]
        return DenseBias(*(x.expand(tiles.n_heads, -1, self.run.blocks, -1, -1).flatten(0, 2) for x in (whole, blind)))

    def _of_classes(self, tiles: TileBatch) -> tuple[Tensor, Tensor]:
        like, blocks = self.parts[0].values, max(values.shape[1] for _, values in self.parts)
        whole = like.new_zeros(tiles.n_classes, blocks, self.run.rows, self.run.width)
        for columns, values in self.parts:
            whole[..., columns] += values[tiles.classes]
        return whole, whole.amax(-1, keepdim=True) == -torch.inf


def _edge(part: Blocks, run: Run, columns: slice, like: Tensor) -> _Columns:
    """Compare each row's interval with the keys of some columns."""
    blocks = 1 if run.uniform else run.blocks
    rows = slice(run.first_row, run.first_row + blocks * run.rows)
    slab = run.first_key + torch.arange(blocks, dtype=torch.int32)[:, None] * run.rows
    first, stop = (bound[:, rows].unflatten(1, (blocks, run.rows)) - slab for bound in (part.first, part.stop))
    column = torch.arange(columns.start, columns.stop, dtype=torch.int32)
    return _Columns(columns, _as_bias((column >= first[..., None]) & (column < stop[..., None]), like))


def _guard(part: Blocks, run: Run, like: Tensor) -> _Columns:
    """Test every pair."""
    q, k = torch.broadcast_tensors(*tile_positions(part.positions(), run))
    allowed = torch.ones_like(q, dtype=torch.bool)
    for guard in part.guards:
        allowed &= guard.allows(q, k)
    return _Columns(slice(0, run.width), _as_bias(allowed, like))


def _as_bias(allowed: Tensor, like: Tensor) -> Tensor:
    bias = torch.zeros(allowed.shape, dtype=like.dtype).masked_fill_(~allowed, -torch.inf)
    return bias.to(like.device)
