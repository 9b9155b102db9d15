"""Marks: what a mask must be told of a document, because only the batch knows it."""

from __future__ import annotations

from typing import NamedTuple

Bounds = tuple[tuple[int, int], ...]  # first position of each marked span, and the one after its last, in order


class Marks(NamedTuple):
    """The marks of one document; the default is a document without any.

    spans: the marked spans; a prefix is the span from 0.
    prompt: number of tokens of its prompt.
    """

    spans: Bounds = ()
    prompt: int = 0


A_PROMPT = Marks(prompt=1)  # of the shortest document that has a prompt, to ask what becomes of one


_OF_SPANS = (
    "where its tokens are: pass prefix_lengths= or span_ids= to the model (in `generate` the prompt is the prefix, or "
    "pass past_key_values=cache_with_prefix(model, ...)), or write a fixed one such as 'prefix:17'"
)
_OF_PROMPTS = (
    "how many tokens the prompt has: pass prompt_lengths= or prompt_mask= to the model (`generate` knows it, or pass "
    "past_key_values=cache_with_prefix(model, prompt_lengths=...)), or write a fixed number such as 'prompt:17'"
)


def unknown(name: str) -> ValueError:
    """Return the error for a mask of this name whose marks are not known."""
    return ValueError(f"'{name}' needs to be told {_OF_SPANS if name in ('prefix', 'spans') else _OF_PROMPTS}")
