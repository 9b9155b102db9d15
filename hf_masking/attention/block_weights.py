"""The weights that an adaptive leaf gives to the pairs of tiles."""

from __future__ import annotations

from torch import Tensor

from ..plan.blocks import Blocks
from .kernel_state import KeyGradient
from .leaves import DocumentLeaf
from .tile_batch import TileBatch, tile_positions


class BlockWeights:
    """An adaptive leaf in the layout of a part.

    query, key: its features ``[H, C, N/C, r]`` and ``[G, C, M/C, s]``; positions: ``[C, N/C]`` and ``[C, M/C]``.
    """

    def __init__(self, part: Blocks, leaf: DocumentLeaf) -> None:
        self.leaf, self.layout = leaf, part.layout.to(leaf.features.query.device)
        query, key = leaf.features
        q, k = part.positions()
        self.positions = q.to(query.device), k.to(query.device)
        self.query = self.layout.queries(query)
        self.key = None if key is None else self.layout.keys(key)
        self.grad_query = self.grad_key = None
        if leaf.gradients is not None:
            self.grad_query = self.layout.queries(leaf.gradients.query)
            if leaf.gradients.key is not None:
                self.grad_key = KeyGradient(self.layout, leaf.gradients.key)

    @property
    def repeats(self) -> bool:
        """True if all tiles of a run have the same weights, which then depend on the distance only.

        Not where the layout starts with padding: that has no position, so the first tile does not stand for all.
        """
        padded = self.layout.query_padding[0] or self.layout.key_padding[0]
        return self.leaf.leaf.constant and self.key is None and self.layout.columns is None and not padded

    def log_weights(self, tiles: TileBatch) -> Tensor:
        """Return ``[heads, classes or 1, blocks or 1, rows, width]``."""
        return self.leaf.log_weight(*self._inputs(tiles.first() if self.repeats else tiles))

    def add_gradients(self, tiles: TileBatch, dS: Tensor) -> None:
        """Add the gradients of the features from those of the scores ``[T, rows, width]``."""
        if self.repeats:
            dS = dS.view(tiles.n_heads, tiles.n_classes, tiles.run.blocks, *dS.shape[1:]).sum((1, 2))
            tiles = tiles.first()
        query, key = self.leaf.tile_gradients(*self._inputs(tiles), dS)
        if self.grad_query is not None:
            tiles.rows(self.grad_query).add_(query)
        if self.grad_key is not None and key is not None:
            tiles.add_to_slabs(self.grad_key.sums, key.flatten(0, 2))

    def write_gradients(self) -> None:
        """Write back what was summed up in copies."""
        if self.grad_query is not None and self.leaf.gradients is not None:
            self.layout.write_queries(self.leaf.gradients.query, self.grad_query)
        if self.grad_key is not None:
            self.grad_key.write()

    def _inputs(self, tiles: TileBatch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return features of queries, features of keys and distances of all tiles."""
        q, k = tile_positions(self.positions, tiles.run)
        key = None if self.key is None else tiles.slabs(self.key)
        return tiles.rows(self.query), key, (q - k)[tiles.classes]
