"""What a cache keeps of the blocks of its keys for a mask that chooses among them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...adaptive import TopBlocks


class BlockSummaries:
    """The summaries of the blocks that are complete in each row, made once when a block is complete.

    Blocks count positions, so the rows of a padded batch are at different blocks.

    states: ``[B, Hkv, blocks, s]``, with room for more; complete: the number of blocks of each row; seen and counts:
    the tokens of the last update, and how many of them were real in each row.
    """

    def __init__(self, leaf: TopBlocks) -> None:
        self.leaf = leaf
        self.states: Tensor | None = None
        self.complete: list[int] = []
        self.seen, self.counts = 0, [0]

    def are_of(self, counts: Callable[[int], list[int]]) -> bool:
        """Whether as many of the first tokens are real as when they were summarized.

        Parameters:
            counts: gives the number of real ones among the first tokens, for each row.
        """
        return not self.seen or counts(self.seen) == self.counts

    def update(self, keys: Tensor, positions: Tensor, seen: int, counts: list[int]) -> Tensor:
        """Adds what has become complete; returns the summaries of all blocks.

        Parameters:
            keys: all that are kept ``[B, Hkv, K, D]``.
            positions: of the keys ``[B or 1, K]``, negative for padding.
            seen: tokens of each row, padding included.
            counts: the real ones of each row.
        """
        self.seen, self.counts = seen, counts
        complete = [count // self.leaf.block for count in counts]
        self.complete = self.complete or [0] * len(keys)
        states = self._with_room(keys, max(complete))
        if len(positions) == 1 and len(set(self.complete)) == 1:
            rows = [slice(None)] if complete[0] > self.complete[0] else []
        else:
            rows = [slice(row, row + 1) for row, done in enumerate(self.complete) if complete[row] > done]
        for row in rows:
            first, stop = (done[row.start or 0] for done in (self.complete, complete))
            real = (positions[row.start if len(positions) > 1 else 0] >= 0).nonzero()[:, 0]
            new = real[first * self.leaf.block : stop * self.leaf.block].to(keys.device)
            states[row, :, first:stop] = self.leaf.summaries(keys[row].detach().index_select(2, new))
        self.complete = [max(pair) for pair in zip(self.complete, complete, strict=True)]
        return states[:, :, : max(self.complete)]

    def crop(self, tokens: int) -> None:
        """Forgets the blocks of the last tokens that are taken back, or some more."""
        self.complete = [max(0, done - -(-tokens // self.leaf.block)) for done in self.complete]
        # How many of the rest were real is not known.
        self.seen = 0

    def select(self, rows: Tensor) -> None:
        if self.states is not None:
            self.states = self.states.index_select(0, rows.to(self.states.device))
            self.complete = [self.complete[row] for row in rows.tolist()]
            self.counts = [self.counts[row] for row in rows.tolist()]

    def _with_room(self, keys: Tensor, blocks: int) -> Tensor:
        if self.states is None or self.states.shape[2] < blocks or self._is_closed(self.states):
            one = self.leaf.summaries(keys[:1, :1, :0].detach())  # of no block, for its size and dtype
            room = one.new_zeros(*keys.shape[:2], blocks + blocks // 4 + 1, one.shape[-1])
            if self.states is not None:
                room[:, :, : self.states.shape[2]] = self.states[:, :, : room.shape[2]]
            self.states = room
        return self.states

    @staticmethod
    def _is_closed(states: Tensor) -> bool:
        """What was made in inference mode may not be written to outside of it."""
        return states.is_inference() and not torch.is_inference_mode_enabled()
