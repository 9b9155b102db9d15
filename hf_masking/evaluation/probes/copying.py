"""Copy: a random segment, filler, and the segment again; which token follows each of its tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .item import CANDIDATES, Item
from .vocabulary import check_enough

_QUESTIONS = 8  # in a context


@dataclass(frozen=True)
class Copy:
    """Ask for the next tokens of a repeated segment.

    A segment of distinct random tokens stands among filler of other tokens, and the context ends in its first 8 tokens
    again. At each of these the candidates are the token that follows in the segment and those after it: none of them
    has been repeated yet, so only the order in the first copy tells them apart.

    tokens: ids to choose from, such as `ordinary_tokens(tokenizer)` or `range(vocabulary)`.
    candidates: number of candidates for each token.
    """

    tokens: Sequence[int]
    candidates: int = CANDIDATES

    @property
    def _length(self) -> int:
        return _QUESTIONS + self.candidates

    def reach(self, context: int) -> tuple[int, int]:
        """Return the distances from the length of the segment to the context, less the repeated tokens."""
        return self._length, context - _QUESTIONS - 1

    def items(self, context: int, distances: Sequence[int], draw: torch.Generator) -> list[Item]:
        """Return one context with 8 questions for each distance."""
        check_enough(len(self.tokens), self._length + self.candidates, "copy")
        return [self._item(context, distance, draw) for distance in distances]

    def _item(self, context: int, distance: int, draw: torch.Generator) -> Item:
        chosen = torch.tensor(self.tokens)[torch.randperm(len(self.tokens), generator=draw)]
        segment, filler = chosen.tensor_split([self._length])
        token_ids = filler[torch.randint(len(filler), (context,), generator=draw)]
        start = context - _QUESTIONS - 1 - distance
        token_ids[start : start + self._length] = segment
        token_ids[-_QUESTIONS:] = segment[:_QUESTIONS]
        # Rows of the candidates: each token of the segment after the first, and those that follow it.
        following = segment[1:].unfold(0, self.candidates, 1)
        order = torch.rand(following.shape, generator=draw).argsort(-1)
        return Item(
            token_ids,
            asked=torch.arange(context - _QUESTIONS, context),
            candidates=following.gather(-1, order)[..., None],
            right=(order == 0).int().argmax(-1),
            distances=torch.full((_QUESTIONS,), distance),
        )
