"""The tiles that one operation of the block kernel computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..plan.blocks import Blocks, Run
from ..plan.cost_model import WORKSPACE
from .kernel_state import ForwardState

# The scores up to which an operation may be batched along two axes.
_COPIED = 2**18


@dataclass(frozen=True)
class TileBatch:
    """All tiles of a run for some heads and classes: T = heads x classes x blocks, each a block against its key slab.

    Tensors are laid out in classes, ``[heads, C, length, D]`` (`Layout`). The tiles are views of them, and neighbouring
    slabs may overlap:

        rows(query)    [heads, classes, blocks, rows, D]
        slabs(key)     [heads, classes, blocks, width, D]

    key_heads: one for each of ``heads``, or one that all of them share.
    """

    run: Run
    heads: slice
    key_heads: slice
    classes: slice

    @property
    def n_heads(self) -> int:
        return _length(self.heads)

    @property
    def n_classes(self) -> int:
        return _length(self.classes)

    def rows(self, x: Tensor) -> Tensor:
        """Return the queries of each tile."""
        return self._view(x, self.heads, self.n_heads, self.run.first_row, self.run.rows)

    def row_matrices(self, x: Tensor) -> Tensor:
        """Return the queries of each tile, ``[T, rows, D]``."""
        return self.rows(x).flatten(0, 2)

    def slabs(self, x: Tensor) -> Tensor:
        """Return the key slab of each tile."""
        return self._view(x, self.key_heads, self.n_heads, self.run.first_key, self.run.width)

    def slab_matrices(self, x: Tensor) -> Tensor:
        """Return the key slab of each tile, ``[T, width, D]``."""
        return self.slabs(x).flatten(0, 2)

    def add_to_slabs(self, total: Tensor, slabs: Tensor, factor: float = 1.0) -> None:
        """Add ``[T, width, D]``, times ``factor``, to the keys that the slabs are made of.

        Slabs overlap; slices of them that are as wide as a block do not.
        """
        run, key_heads = self.run, _length(self.key_heads)
        slabs = slabs.view(-1, self.n_classes, run.blocks, run.width, slabs.shape[-1])
        if key_heads < slabs.shape[0]:
            slabs = slabs.sum(0, keepdim=True)
        step = run.width if run.blocks == 1 else run.rows
        for start in range(0, run.width, step):
            width = min(step, run.width - start)
            target = self._view(total, self.key_heads, key_heads, run.first_key + start, width)
            target.add_(slabs.narrow(3, start, width), alpha=factor)

    def first(self) -> TileBatch:
        """Return the first tile of each head."""
        one = Run(
            first_row=self.run.first_row,
            blocks=1,
            rows=self.run.rows,
            first_key=self.run.first_key,
            width=self.run.width,
            left=self.run.left,
            right=self.run.right,
            uniform=True,
        )
        return TileBatch(one, self.heads, self.key_heads, slice(self.classes.start, self.classes.start + 1))

    def _view(self, x: Tensor, heads: slice, n_heads: int, first: int, length: int) -> Tensor:
        """Return ``length`` neighbours from ``first`` on, and for each further block those ``rows`` later.

        A single head is repeated ``n_heads`` times. ``as_strided`` is one operation where slicing and ``unfold`` are
        four, which shows in the time.
        """
        head, in_class, row, column = x.stride()
        start = x.storage_offset() + heads.start * head + self.classes.start * in_class + first * row
        sizes = n_heads, self.n_classes, self.run.blocks, length, x.shape[-1]
        strides = 0 if _length(heads) == 1 else head, in_class, self.run.rows * row, row, column
        return x.as_strided(sizes, strides, start)


def tile_batches(part: Blocks, run: Run, x: ForwardState) -> Iterator[TileBatch]:
    """Cut the heads and classes of a run so that an operation holds no more scores than the workspace.

    On a CPU an operation is batched along one axis, blocks or classes or heads: along two of them the slabs, which
    overlap, would have to be copied, which only pays for so few scores that starting an operation takes longer.
    """
    one_axis = max(1, WORKSPACE // run.pairs)
    two_axes = one_axis if x.query.device.type != "cpu" else max(1, _COPIED // run.pairs)
    n_classes = min(part.classes, one_axis if run.blocks == 1 else two_axes)
    n_heads = max(1, (one_axis if run.blocks == part.classes == 1 else two_axes) // n_classes)
    for heads, key_heads in x.head_groups():
        for head in range(heads.start, heads.stop, n_heads):
            mine = slice(head, min(head + n_heads, heads.stop))
            shift = key_heads.start - heads.start
            keys = slice(mine.start + shift, mine.stop + shift) if x.group == 1 else key_heads
            for first in range(0, part.classes, n_classes):
                yield TileBatch(run, mine, keys, slice(first, min(first + n_classes, part.classes)))


def tile_positions(positions: tuple[Tensor, Tensor], run: Run) -> tuple[Tensor, Tensor]:
    """Return the positions of a run's tiles: queries ``[C, blocks, rows, 1]`` and keys ``[C, blocks, 1, width]``."""
    q, k = positions
    q = q[:, run.first_row : run.stop_row].unflatten(1, (run.blocks, run.rows))
    k = k[:, run.first_key : run.first_key + (run.blocks - 1) * run.rows + run.width].unfold(1, run.width, run.rows)
    return q[..., None], k[..., None, :]


def _length(part: slice) -> int:
    return int(part.stop - part.start)
