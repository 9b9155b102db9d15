"""Read which tokens see each other bidirectionally: prefixes and marked spans, from wherever a caller gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from ...masks.marks import unknown
from ...plan.documents import PADDING, renumbered
from ..caching.record import record_of
from .given import as_lengths, check_ids, repeated
from .prompts import prompts_of_generate


def read_spans(
    arguments: Mapping[str, Any], prefix_only: bool, real: Tensor | None, packed: bool, shape: tuple[int, int, int]
) -> Tensor:
    """Return the marked span of each token ``[B or 1, N]``, negative for none.

    Parameters:
        arguments: those of the forward, by name.
        prefix_only: the masks ask only where a prefix ends, so that in `generate` it can be the prompt.
        real: ``[B, N]``, False for padding; None where no token is.
        packed: a row may hold several documents.
        shape: rows, cached tokens and new tokens.

    Raises:
        ValueError: the spans are not known, or they do not come in full with one call.
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
        lengths, span_ids = _marks_of_cache(arguments, prefix_only, real, rows, new)
    if lengths is not None:
        spans = _of_prefixes(lengths, real, rows, new)
    elif span_ids is not None:
        spans = _of_ids(span_ids, real, shape)
    else:
        raise unknown("prefix" if prefix_only else "spans")
    _refuse_seen_labels(arguments.get("labels"), spans[:, seen:])
    return spans


def _marks_of_cache(
    arguments: Mapping[str, Any], prefix_only: bool, real: Tensor | None, rows: int, new: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return lengths or span ids from the cache; without these, the prompts in the first call of `generate`."""
    lengths, span_ids = None, None
    cache = arguments.get("past_key_values")
    if isinstance(cache, Cache):
        lengths, span_ids, _ = record_of(cache).marks
    if lengths is not None:
        lengths = repeated(lengths, rows)
    elif span_ids is not None:
        span_ids = repeated(span_ids, rows)
        # Assisted decoding appends its first candidates.
        span_ids = pad(span_ids, (0, max(0, new - span_ids.shape[1])), value=PADDING)
    elif prefix_only:
        lengths = prompts_of_generate(arguments, real, rows, new, "lengths")
    return lengths, span_ids


def _of_prefixes(lengths: Any, real: Tensor | None, rows: int, new: int) -> Tensor:
    device = torch.device("cpu") if real is None else real.device
    lengths = as_lengths("prefix_lengths", lengths, rows, device)
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
