"""Summaries of the blocks of cached keys, for a mask that selects key blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...adaptive import Selection


class BlockSummaries:
    """The summaries of the complete blocks in each row, each made once, when its block is complete.

    Blocks count positions, so the rows of a padded batch are at different blocks.

    states: ``[B, G, blocks, s]``, with room for more.
    complete: the number of complete blocks of each row.
    seen, counts: the number of tokens at the last update, and how many of them were real in each row.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.states: Tensor | None = None
        self.complete: list[int] = []
        self.seen, self.counts = 0, [0]

    def are_of(self, counts: Callable[[int], list[int]]) -> bool:
        """Return whether as many of the first tokens are real as when they were summarized.

        Parameters:
            counts: returns the number of real tokens among the first ones, for each row.
        """
        return not self.seen or counts(self.seen) == self.counts

    def update(self, keys: Tensor, positions: Tensor, seen: int, counts: list[int]) -> Tensor:
        """Add the blocks that have become complete; return the summaries of all blocks.

        Parameters:
            keys: all retained keys ``[B, G, M, D]``.
            positions: of the keys ``[B or 1, M]``, negative for padding.
            seen: number of tokens in each row, padding included.
            counts: number of real tokens in each row.
        """
        self.seen, self.counts = seen, counts
        complete = [count // self.selection.block for count in counts]
        self.complete = self.complete or [0] * len(keys)
        states = self._with_room(keys, max(complete))
        if len(positions) == 1 and len(set(self.complete)) == 1:
            rows = [slice(None)] if complete[0] > self.complete[0] else []
        else:
            rows = [slice(row, row + 1) for row, done in enumerate(self.complete) if complete[row] > done]
        for row in rows:
            first, stop = (done[row.start or 0] for done in (self.complete, complete))
            real = (positions[row.start if len(positions) > 1 else 0] >= 0).nonzero()[:, 0]
            new = real[first * self.selection.block : stop * self.selection.block].to(keys.device)
            states[row, :, first:stop] = self.selection.summarize(keys[row].detach().index_select(2, new))
        self.complete = [max(pair) for pair in zip(self.complete, complete, strict=True)]
        return states[:, :, : max(self.complete)]

    def crop(self, tokens: int) -> None:
        """Drop the blocks of the last tokens, or some more, when these are taken back."""
        self.complete = [max(0, done - -(-tokens // self.selection.block)) for done in self.complete]
        # How many of the others were real is not known.
        self.seen = 0

    def select(self, rows: Tensor) -> None:
        if self.states is not None:
            self.states = self.states.index_select(0, rows.to(self.states.device))
            self.complete = [self.complete[row] for row in rows.tolist()]
            self.counts = [self.counts[row] for row in rows.tolist()]

    def _with_room(self, keys: Tensor, blocks: int) -> Tensor:
        if self.states is None or self.states.shape[2] < blocks or self._is_closed(self.states):
            one = self.selection.summarize(keys[:1, :1, :0].detach())  # an empty one, for its size and dtype
            room = one.new_zeros(*keys.shape[:2], blocks + blocks // 4 + 1, one.shape[-1])
            if self.states is not None:
                room[:, :, : self.states.shape[2]] = self.states[:, :, : room.shape[2]]
            self.states = room
        return self.states

    @staticmethod
    def _is_closed(states: Tensor) -> bool:
        """Return whether a tensor was made in inference mode, and may not be written to outside it."""
        return states.is_inference() and not torch.is_inference_mode_enabled()
