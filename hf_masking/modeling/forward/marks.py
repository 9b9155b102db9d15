"""Read prefixes and marked spans: from ``prefix_lengths=``, ``span_ids=``, a cache with a prefix, or a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from ...masks import MaskExpression
from ...plan.documents import PADDING, renumbered
from ..caching.record import record_of
from .generate_calls import GenerationState, candidates, generation_state


@dataclass(frozen=True)
class Needs:
    """The needs of a model's masks: what they must know about a batch.

    spans: which tokens are marked.
    prefix_only: only where a prefix ends, so that in `generate` it can be the prompt.
    adaptive: its hidden states; a cache stores the features of its keys.
    lookahead: this many tokens after the query, outside marked spans; `generate` has none.
    """

    spans: bool
    prefix_only: bool
    adaptive: bool
    lookahead: int

    @classmethod
    def of(cls, masks: Iterable[MaskExpression]) -> Needs:
        masks = list(masks)
        return cls(
            spans=any(mask.needs for mask in masks),
            prefix_only=all(mask.needs <= {"prefix"} for mask in masks),
            adaptive=any(mask.is_adaptive for mask in masks),
            lookahead=max((mask.unmarked.union.lookahead for mask in masks), default=0),
        )


def check_ids(name: str, ids: Tensor, rows: int, tokens: int) -> None:
    """Raise a ValueError unless ``ids`` are integers, one for each token of each row, or of one row for all."""
    if ids.is_floating_point() or ids.shape not in {(rows, tokens), (1, tokens)}:
        got = f"{ids.dtype} of shape {list(ids.shape)}"
        raise ValueError(f"{name} must be integers of shape [{rows}, {tokens}], got {got}")


def refuse_spans(arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError if tokens are marked and no mask needs marks."""
    for name, mask in (("prefix_lengths", "prefix|causal"), ("span_ids", "spans|causal")):
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is for a mask that needs it, such as patch_model(model, '{mask}')")


def read_spans(
    arguments: Mapping[str, Any], needs: Needs, real: Tensor | None, packed: bool, shape: tuple[int, int, int]
) -> Tensor | None:
    """Return the marked span of each token ``[B or 1, N]``, negative for none; None where nothing is marked.

    Parameters:
        arguments: those of the forward, by name.
        needs: what the masks need to know.
        real: ``[B, N]``, False for padding; None where no token is.
        packed: a row may hold several documents.
        shape: rows, cached tokens and new tokens.
    """
    rows, seen, new = shape
    lengths, span_ids = arguments.get("prefix_lengths"), arguments.get("span_ids")
    if lengths is not None and span_ids is not None:
        raise ValueError("prefix_lengths and span_ids are both given; a prefix is the span that starts at 0")
    if lengths is not None and (seen or packed):
        why = "a cache holds its prefix since its first call" if seen else "rows hold several documents"
        raise ValueError(f"prefix_lengths are given where {why}; leave them out, or pass span_ids")
    if lengths is None and span_ids is None:
        if seen:
            # Marked spans came in full with an earlier call.
            return torch.full((1, seen + new), PADDING)
        lengths, span_ids = _marks_of_cache(arguments, needs, real, rows, new)
    if lengths is not None:
        spans = _of_prefixes(lengths, real, rows, new)
    elif span_ids is not None:
        spans = _of_ids(span_ids, real, shape)
    else:
        return None
    _refuse_seen_labels(arguments.get("labels"), spans[:, seen:])
    return spans


def _marks_of_cache(
    arguments: Mapping[str, Any], needs: Needs, real: Tensor | None, rows: int, new: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return lengths or span ids from the cache; without these, the prompts in the first call of `generate`."""
    lengths, span_ids = None, None
    cache = arguments.get("past_key_values")
    if isinstance(cache, Cache):
        lengths, span_ids = record_of(cache).marks
    # `generate` repeats each prompt for beams and return sequences.
    if lengths is not None:
        lengths = torch.as_tensor(lengths).reshape(-1)
        lengths = lengths.repeat_interleave(max(1, rows // max(1, len(lengths))))
    elif span_ids is not None:
        span_ids = span_ids.repeat_interleave(max(1, rows // max(1, len(span_ids))), dim=0)
        # Assisted decoding appends its first candidates.
        span_ids = pad(span_ids, (0, max(0, new - span_ids.shape[1])), value=PADDING)
    elif needs.prefix_only:
        lengths = _prompts(arguments, real, rows, new)
    return lengths, span_ids


def _prompts(arguments: Mapping[str, Any], real: Tensor | None, rows: int, new: int) -> Tensor | None:
    """Return the lengths of the prompts ``[B]`` in the first call of `generate`, None in other calls."""
    state = generation_state(arguments)
    if state is GenerationState.CHUNK:
        raise ValueError(
            "the attention_mask or position_ids of this first call are slices of longer ones, as in chunked prefill, "
            "where a chunk would pass for the prompt; give the lengths: past_key_values=cache_with_prefix(model, "
            "lengths), or clone() a mask that is a slice"
        )
    if state is not GenerationState.PROMPT:
        return None
    counts = torch.full((rows,), new) if real is None else real.sum(-1)
    return counts - candidates(arguments)


def _of_prefixes(lengths: Any, real: Tensor | None, rows: int, new: int) -> Tensor:
    device = torch.device("cpu") if real is None else real.device
    lengths = torch.as_tensor(lengths, device=device)
    if lengths.is_floating_point() or lengths.shape != (rows,):
        raise ValueError(f"prefix_lengths must be {rows} integers, one per row, got {lengths.tolist()}")
    counts = torch.arange(1, new + 1, device=device).expand(rows, -1) if real is None else real.cumsum(-1)
    if bool((lengths < 0).any()) or bool((lengths > counts[:, -1]).any()):
        raise ValueError(
            f"the prefixes have {lengths.tolist()} tokens and the first call has {counts[:, -1].tolist()}; a prefix "
            "must come in one call, since its tokens see each other bidirectionally (no chunked prefill)"
        )
    inside = counts <= lengths[:, None]
    return torch.where(inside if real is None else inside & real, 0, PADDING)


def _of_ids(span_ids: Tensor, real: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
    rows, seen, new = shape
    check_ids("span_ids", span_ids, rows, seen + new)
    spans = renumbered(span_ids)
    if real is not None:
        spans = torch.where(real, spans.to(real.device), PADDING)
    for row in spans if seen else ():
        if set(row[:seen].tolist()) & set(row[seen:].tolist()) - {PADDING}:
            raise ValueError(
                "a marked span starts in the cache and continues in new tokens, which its first tokens have not seen; "
                "pass a span in one call"
            )
    # No new token is in a span of cached ones, and the cache may have evicted a part of it.
    return torch.where(torch.arange(seen + new, device=spans.device) < seen, PADDING, spans)


def _refuse_seen_labels(labels: Tensor | None, spans: Tensor) -> None:
    if labels is None or labels.shape[-1] != spans.shape[-1]:
        return
    spans = spans.to(labels.device)
    inside = (spans[:, 1:] >= 0) & (spans[:, 1:] == spans[:, :-1])
    if bool((inside & (labels[:, 1:] != -100)).any()):
        raise ValueError(
            "labels inside a prefix or a marked span are visible to the rows that predict them; set them to -100: "
            "labels = hf_masking.training.labels_for_prefix_lm(prefix_lengths, labels)"
        )
