"""Define what a probe asks: contexts with questions in them, and the tasks that draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

CANDIDATES = 8
NO_TOKEN = -1  # fills up candidates that are shorter than others


@dataclass(frozen=True, eq=False)
class Item:
    """A context and the questions asked in it.

    token_ids: ``[N]``, the context.
    asked: ``[Q]``, the column of each question: which candidate follows the token there?
    candidates: ``[Q, C, T]``, token ids; shorter candidates end in `NO_TOKEN`. Candidates of several tokens take a
        single question, in the last column.
    right: ``[Q]``, the index of the right candidate.
    distances: ``[Q]``, tokens from the column of the question back to the first token of the answer. Under a window W a
        query sees back to distance W - 1.
    """

    token_ids: Tensor
    asked: Tensor
    candidates: Tensor
    right: Tensor
    distances: Tensor

    def __post_init__(self) -> None:
        if self.candidates.shape[-1] > 1 and self.asked.tolist() != [len(self.token_ids) - 1]:
            raise ValueError(
                "candidates of several tokens take one question, in the last column of the context, which is "
                f"{len(self.token_ids) - 1}; got questions in the columns {self.asked.tolist()}"
            )

    def after(self, token_id: int) -> Item:
        """Return the item with a token before its context."""
        tokens = torch.cat([self.token_ids.new_tensor([token_id]), self.token_ids])
        return replace(self, token_ids=tokens, asked=self.asked + 1)


class Task(Protocol):
    """A kind of question that `probe` can ask; anything with these two methods is one."""

    def reach(self, context: int) -> tuple[int, int]:
        """Return the smallest and the greatest distance that a context of so many tokens has room for."""
        ...

    def items(self, context: int, distances: Sequence[int], draw: torch.Generator) -> list[Item]:
        """Return contexts of one length that ask equally often at each distance; all have tensors of the same shapes.

        The right answers must be drawn so that what lies nearer than the answer says nothing about it: only then is a
        model at chance under a mask that does not reach it.
        """
        ...
