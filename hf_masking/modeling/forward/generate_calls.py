"""Tell whether `generate` is calling, which it does not say, from what each of its modes sends.

What the model's forward is given under ``torch.no_grad()``, in Transformers 5 (``to_keep`` is ``logits_to_keep``; a
padded batch, and a static cache, bring an ``attention_mask`` as well)::

    call                                           cache     to_keep           position_ids   state
    first: greedy, sampling, beams, inputs_embeds  empty     1                 yes            PROMPT
    first: prompt lookup, assisted                 empty     1 + candidates    yes            PROMPT
    first chunk of a chunked prefill               empty     1                 a slice        CHUNK
    later: next token, chunk or turn               filled    1                 yes            STEP
    later: candidates to verify                    filled    1 + candidates    yes            STEP
    every call with use_cache=False                none      1                 yes            STEP
    the model's own forward                        any       none, or 0        any            NONE

A user's forward on a filled cache is a STEP as well: it decodes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class GenerationState(enum.Enum):
    """The part that a forward has in a generation.

    NONE: it is not known to be part of one.
    PROMPT: the first call, whose tokens are the whole prompts, and candidates for the next tokens after them.
    CHUNK: the first call, whose tokens are the first chunk of the prompts.
    STEP: a call for the next tokens.
    """

    NONE = enum.auto()
    PROMPT = enum.auto()
    CHUNK = enum.auto()
    STEP = enum.auto()


def generation_state(arguments: Mapping[str, Any]) -> GenerationState:
    """Return the part that a forward with these arguments has in a generation."""
    cache, to_keep = arguments.get("past_key_values"), arguments.get("logits_to_keep")
    if cache is not None and bool(cache.get_seq_length()):
        return GenerationState.STEP
    if torch.is_grad_enabled() or not isinstance(to_keep, int) or to_keep < 1:
        return GenerationState.NONE
    if not isinstance(cache, Cache) or arguments.get("position_ids") is None:
        return GenerationState.STEP if to_keep == 1 else GenerationState.NONE
    given = (arguments.get("attention_mask"), arguments.get("position_ids"))
    return GenerationState.CHUNK if any(map(_is_slice, given)) else GenerationState.PROMPT


def candidates(arguments: Mapping[str, Any]) -> int:
    """Return how many candidates for the next tokens a call of `generate` brings."""
    return int(arguments["logits_to_keep"]) - 1


def _is_slice(tensor: Any) -> bool:
    """Return whether a tensor is cut off a longer one: this alone tells a chunk of a prompt from a prompt."""
    return isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
