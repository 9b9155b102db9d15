"""Small tokenizers."""

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters + string.digits + " .?"


def _built(vocabulary, merges):
    model = models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, unk_token="~")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="~", clean_up_tokenization_spaces=False)


def of_characters(characters=CHARACTERS):
    """One token for each character, and one for all others."""
    return _built(["~", *characters], [])


def of_digit_pairs():
    """Some pairs of digits, and a digit after a space, are one token: numbers have different lengths."""
    merges = [*((first, second) for first in "13579" for second in "02468"), *((" ", digit) for digit in "123")]
    return _built(["~", *CHARACTERS, *map("".join, merges)], merges)
