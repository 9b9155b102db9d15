"""Read how many tokens of each document are its prompt, from wherever a caller gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...masks.marks import unknown
from ...plan.documents import ids_from_padding, positions_in_documents
from ..caching.layer import MaskedLayer
from ..caching.record import record_of
from .generate_calls import GenerationState, candidates, generation_state
from .given import as_lengths, check_ids, repeated


def read_prompts(
    arguments: Mapping[str, Any],
    cache: Cache | None,
    real: Tensor | None,
    ids: Tensor | None,
    shape: tuple[int, int, int],
) -> Tensor:
    """Return the number of prompt tokens of each token's document ``[B or 1, N]``.

    Parameters:
        arguments: those of the forward, by name.
        cache: the cache, if its layers are `MaskedLayer`s, which remember the prompts of their rows.
        real: ``[B, N]``, False for padding; None where no token is.
        ids: the document of each token ``[B, N]``, where rows may hold several.
        shape: rows, cached tokens and new tokens.

    Raises:
        ValueError: the prompts are not known, or not those of earlier calls.
    """
    rows, seen, new = shape
    given = _given(arguments, real, ids, shape)
    if given is None and not seen and ids is None:
        given = _first_prompts(arguments, real, rows, new)
    held = _held(cache) if seen else None
    if held is None and given is None:
        raise unknown("prompt")
    prompts = given if held is None else held
    assert prompts is not None
    if given is not None and bool((given != prompts.to(given.device)).any()):
        raise ValueError(
            f"this cache was filled for prompts of {prompts[:, 0].tolist()} tokens, and now they are "
            f"{given[:, 0].tolist()}; leave them out, or give their whole lengths in the first call already"
        )
    return prompts.expand(-1, seen + new)


def prompts_of_generate(arguments: Mapping[str, Any], real: Tensor | None, rows: int, new: int, give: str) -> Any:
    """Return the lengths of the prompts ``[B]`` in the first call of `generate`, None in other calls.

    Parameters:
        give: how `cache_with_prefix` is told the lengths.
    """
    state = generation_state(arguments)
    if state is GenerationState.CHUNK:
        raise ValueError(
            "the attention_mask or position_ids of this first call are slices of longer ones, as in chunked prefill, "
            f"where a chunk would pass for the prompt; give the lengths: past_key_values=cache_with_prefix(model, "
            f"{give}), or clone() a mask that is a slice"
        )
    if state is not GenerationState.PROMPT:
        return None
    counts = torch.full((rows,), new) if real is None else real.sum(-1)
    return counts - candidates(arguments)


def _given(
    arguments: Mapping[str, Any], real: Tensor | None, ids: Tensor | None, shape: tuple[int, int, int]
) -> Tensor | None:
    """Return the prompts that the caller gives, ``[B, 1]`` or ``[B, N]``."""
    lengths, inside = arguments.get("prompt_lengths"), arguments.get("prompt_mask")
    if lengths is not None and inside is not None:
        raise ValueError("prompt_lengths and prompt_mask are both given; leave one of them out")
    if inside is not None:
        return _of_mask(inside, real, ids, shape)
    if lengths is not None and ids is not None:
        raise ValueError(
            "prompt_lengths are given where rows hold several documents; pass prompt_mask of shape "
            f"[{shape[0]}, {sum(shape[1:])}], True for the prompt of each document"
        )
    return None if lengths is None else _by_row(lengths, real, shape[0])


def _first_prompts(arguments: Mapping[str, Any], real: Tensor | None, rows: int, new: int) -> Tensor | None:
    """Return the prompts ``[B, 1]`` that the cache was made for, or else those in the first call of `generate`."""
    cache = arguments.get("past_key_values")
    lengths = record_of(cache).marks.prompt_lengths if isinstance(cache, Cache) else None
    if lengths is not None:
        lengths = repeated(lengths, rows)
    else:
        lengths = prompts_of_generate(arguments, real, rows, new, "prompt_lengths=lengths")
    return None if lengths is None else _by_row(lengths, real, rows)


def _held(cache: Cache | None) -> Tensor | None:
    """Return the prompts ``[B or 1, 1]`` that a cache remembers."""
    first = None if cache is None else cache.layers[0]
    held = first.eviction.prompts if isinstance(first, MaskedLayer) else None
    return None if held is None else held[:, None]


def _by_row(lengths: Any, real: Tensor | None, rows: int) -> Tensor:
    """Return lengths as ``[B, 1]``. They may be greater than the first call: a prompt may come in several."""
    lengths = as_lengths("prompt_lengths", lengths, rows, torch.device("cpu") if real is None else real.device)
    if bool((lengths < 0).any()):
        raise ValueError(f"prompt_lengths must be at least 0, got {lengths.tolist()}")
    return lengths.long()[:, None]


def _of_mask(inside: Tensor, real: Tensor | None, ids: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
    """Return the number of prompt tokens of each token's document ``[B, N]``."""
    rows, seen, new = shape
    check_ids("prompt_mask", inside, rows, seen + new)
    if ids is None:
        ids = ids_from_padding(torch.ones_like(inside) if real is None else real).expand(rows, -1)
    inside = inside.to(ids.device).bool() & (ids >= 0)
    documents = ids.clamp(min=0)
    counts = torch.zeros_like(documents).scatter_add(1, documents, inside.to(ids.dtype))
    prompts = counts.gather(1, documents)
    if bool((inside != ((positions_in_documents(ids) < prompts) & (ids >= 0))).any()):
        raise ValueError(
            "prompt_mask must be True for the first tokens of a document and for no others (of a conversation, the "
            "first turn); give how many with prompt_lengths=, or unmark the others"
        )
    return prompts
