"""Recall: bindings of a key and a value among filler, then the keys again; which value follows each?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .item import CANDIDATES, Item
from .vocabulary import check_enough

_APART = 4  # distances so far apart leave room for a binding and a question between two others


@dataclass(frozen=True)
class Recall:
    """Ask for the values of keys (associative recall; Arora et al. 2023, arXiv:2312.04927).

    A context ends in questions, each a key and then its value, one question for each distance; the last value is not
    there. Each key has been bound once, at exactly that distance: the key, then the value. Keys, values and the filler
    between them are disjoint random tokens, chosen anew for each context. The values are drawn independently, so
    nothing but its own binding says which value a key has.

    tokens: ids to choose from, such as `ordinary_tokens(tokenizer)` or `range(vocabulary)`.
    candidates: number of values.
    """

    tokens: Sequence[int]
    candidates: int = CANDIDATES

    def reach(self, context: int) -> tuple[int, int]:
        """Return the distances from 4 to the context, less the binding's key and the question."""
        return _APART, context - 2

    def items(self, context: int, distances: Sequence[int], draw: torch.Generator) -> list[Item]:
        """Return one context that asks at every distance, from the nearest to the farthest."""
        back = torch.tensor(sorted(distances))
        if len(back) > 1 and int(back.diff().min()) < _APART:
            raise ValueError(f"the distances of recall must be at least {_APART} apart, got {back.tolist()}")
        check_enough(len(self.tokens), len(back) + 2 * self.candidates, "recall")
        chosen = torch.tensor(self.tokens)[torch.randperm(len(self.tokens), generator=draw)]
        keys, values, filler = chosen.tensor_split([len(back), len(back) + self.candidates])
        right = torch.randint(self.candidates, (len(back),), generator=draw)
        token_ids = filler[torch.randint(len(filler), (context,), generator=draw)]
        asked = context - 1 - 2 * torch.arange(len(back)).flip(0)
        token_ids[asked] = token_ids[asked - back - 1] = keys
        token_ids[asked[:-1] + 1] = values[right[:-1]]
        token_ids[asked - back] = values[right]
        return [Item(token_ids, asked, values.expand(len(back), -1)[..., None], right, back)]
