"""Passkey: a number hidden in filler sentences, and asked for in the last sentence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import takewhile

import torch
from transformers import PreTrainedTokenizerBase

from ..text import tokenize
from .item import CANDIDATES, NO_TOKEN, Item

# The sentences of Mohtashami & Jaggi 2023, with the number said once.
FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HIDDEN = " The pass key is {}. Remember it."
QUESTION = " What is the pass key? The pass key is {}"
_KEYS = 64


class Passkey:
    """Ask for a number of five digits (Mohtashami & Jaggi 2023, arXiv:2305.16300), ranked against other numbers.

    Parameters:
        tokenizer: that of the model.
        candidates: number of numbers to choose from.

    Raises:
        ValueError: the tokenizer cannot tell numbers apart.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, candidates: int = CANDIDATES) -> None:
        keys = [str(key) for key in random.Random(0).sample(range(10_000, 100_000), _KEYS)]
        self.candidates = candidates
        self.filler = _encoded(tokenizer, [FILLER])[0]
        self.hidden = _encoded(tokenizer, [HIDDEN.format(key) for key in keys])
        self.offset = _common(self.hidden)  # of the key in its sentence
        asked = _encoded(tokenizer, [QUESTION.format(key) for key in keys])
        # Whatever the tokenizer joins with a space or a digit: the question is what all of them begin with.
        begins = _common(asked)
        self.question = asked[0][:begins]
        self.keys = [tuple(ids[begins:]) for ids in asked]
        if len(set(self.keys)) < _KEYS or () in self.keys:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} does not tell numbers such as {keys[0]} and {keys[1]} "
                "apart, which the probe passkey takes; use recall or copy"
            )
        self.longest = max(map(len, self.keys))

    def reach(self, context: int) -> tuple[int, int]:
        """Return the distances between a key right before the question and one in the first sentence."""
        nearest = max(map(len, self.hidden)) - self.offset + len(self.question)
        return 1 << (nearest - 1).bit_length(), self._length(context) - 1 - self.offset

    def items(self, context: int, distances: Sequence[int], draw: torch.Generator) -> list[Item]:
        """Return one context with one question for each distance."""
        return [self._item(self._length(context), distance, draw) for distance in distances]

    def _length(self, context: int) -> int:
        """Return the number of tokens before the answer, all but the last token of which is read, too."""
        return context - (self.longest - 1)

    def _item(self, length: int, distance: int, draw: torch.Generator) -> Item:
        chosen = torch.randperm(_KEYS, generator=draw)[: self.candidates].tolist()
        right = int(torch.randint(self.candidates, (1,), generator=draw))
        hidden = self.hidden[chosen[right]]
        start = length - 1 - distance - self.offset
        between = length - start - len(hidden) - len(self.question)
        sentences = self.filler * (length // len(self.filler) + 1)
        # The filler is cut at the beginning of the context and before the question, never before the key.
        token_ids = sentences[len(sentences) - start :] + hidden + sentences[:between] + self.question
        candidates = [[*self.keys[key], *[NO_TOKEN] * (self.longest - len(self.keys[key]))] for key in chosen]
        return Item(
            torch.tensor(token_ids),
            asked=torch.tensor([length - 1]),
            candidates=torch.tensor([candidates]),
            right=torch.tensor([right]),
            distances=torch.tensor([distance]),
        )


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenize(tokenizer, texts, add_special_tokens=False)["input_ids"]]


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens that all sequences begin with."""
    # The shortest one ends the comparison.
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
