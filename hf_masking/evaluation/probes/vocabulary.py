"""Choose the tokens that probes are made of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

_MOST = 2048


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of tokens that are letters or digits by themselves, at most 2,048 of them.

    Special and added tokens are left out, and pieces of characters. The lowest ids come first: where a tokenizer has
    learned them by merging, these are the most frequent ones.
    """
    return tuple(islice(_ordinary(tokenizer), _MOST))


def _ordinary(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    apart = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for token_id in range(tokenizer.vocab_size):
        if token_id not in apart and str(tokenizer.decode([token_id])).strip().isalnum():
            yield token_id


def check_enough(tokens: int, needed: int, task: str) -> None:
    """Raise a ValueError if there are too few tokens for a task."""
    if tokens < needed:
        raise ValueError(
            f"{task} takes at least {needed} ordinary tokens (letters or digits), got {tokens}; use a tokenizer with "
            "more of them, a shorter context or fewer candidates"
        )
