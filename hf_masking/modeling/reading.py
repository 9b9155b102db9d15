"""From the arguments of a forward to what they say of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..plan.documents import PADDING, ids_from_padding, ids_from_position_ids, renumbered
from .batch import Batch
from .cache import prefix_lengths
from .handle import is_handle

OWN = ("document_ids", "prefix_lengths", "span_ids")  # arguments that the model itself does not know
_PACKED = "hf_masking_packed"  # the attribute of a cache whose rows hold several documents


def read(arguments: Mapping[str, Any], cache: Cache | None, *, marks: bool) -> Batch:
    """The batch of a forward.

    Parameters:
        arguments: those of the forward, by name.
        cache: the cache, if its layers are `MaskedLayer`s.
        marks: whether a mask of the model asks for marked spans.
    """
    attention_mask, given = arguments.get("attention_mask"), arguments.get("past_key_values")
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    if inputs is None or _is_prepared(attention_mask):
        return Batch()
    rows, new = inputs.shape[:2]
    seen = int(given.get_seq_length()) if given is not None else 0
    real = _read_padding(attention_mask, rows, seen, new)
    ids = _read_document_ids(arguments.get("document_ids"), rows, seen, new)
    if ids is None and seen and getattr(given, _PACKED, False):
        raise ValueError(
            "this cache holds packed documents, so the document of a new token is unknown; "
            f"pass document_ids of shape [{rows}, {seen + new}] (cached and new tokens), or decode one document a row"
        )
    if ids is None:
        ids = _read_position_ids(arguments.get("position_ids"), real, rows, seen, new)
    packed = ids is not None
    if ids is None:
        ids = None if real is None else ids_from_padding(real)
    elif real is not None:
        ids = torch.where(real, ids, PADDING)
    if not marks:
        _refuse_spans(arguments)
    spans = _read_spans(arguments, real, packed, rows, seen, new) if marks else None
    if spans is not None and ids is None:
        ids = torch.zeros_like(spans)
    if all(x is None or bool((x == x[:1]).all()) for x in (ids, spans)):
        # Rows that are alike are described, and computed, as one.
        ids, spans = (None if x is None else x[:1] for x in (ids, spans))
    return Batch(seen, new, ids, packed, spans, cache)


def remember_packing(cache: Any) -> None:
    if isinstance(cache, Cache):
        setattr(cache, _PACKED, True)


def _is_prepared(attention_mask: Any) -> bool:
    """Whether the mask slot holds our own handles already (`generate` prepares them before a compiled forward)."""
    values = list(attention_mask.values()) if isinstance(attention_mask, Mapping) else [attention_mask]
    if all(value is None or is_handle(value) for value in values):
        return any(value is not None for value in values)
    for value in values:
        if isinstance(value, Tensor) and value.ndim == 2 and value is attention_mask:
            return False
        got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"a patched model takes the 2D padding mask [batch, tokens] as attention_mask, got {got}; "
            "say the pattern as a mask instead: patch_model(model, 'window:256|sinks:4')"
        )
    return False


def _read_padding(attention_mask: Tensor | None, rows: int, seen: int, new: int) -> Tensor | None:
    """The real tokens ``[B, N]``; None where all are."""
    if attention_mask is None:
        return None
    if attention_mask.shape != (rows, seen + new):
        raise ValueError(
            f"attention_mask must cover the {seen} cached and {new} new tokens, shape [{rows}, {seen + new}], "
            f"got {list(attention_mask.shape)}"
        )
    real = attention_mask.bool()
    return None if bool(real.all()) else real


def _read_document_ids(document_ids: Tensor | None, rows: int, seen: int, new: int) -> Tensor | None:
    return None if document_ids is None else renumbered(_per_token("document_ids", document_ids, rows, seen, new))


def _per_token(name: str, ids: Tensor, rows: int, seen: int, new: int) -> Tensor:
    if ids.is_floating_point() or ids.shape not in {(rows, seen + new), (1, seen + new)}:
        got = f"{ids.dtype} of shape {list(ids.shape)}"
        raise ValueError(f"{name} must be integers of shape [{rows}, {seen + new}], got {got}")
    return ids.expand(rows, -1)


def _read_position_ids(
    position_ids: Tensor | None, real: Tensor | None, rows: int, seen: int, new: int
) -> Tensor | None:
    """Document ids if the position ids start anew somewhere; positions of several axes (images) say nothing of that."""
    if position_ids is None or position_ids.ndim != 2:
        return None
    position_ids = position_ids.expand(rows, -1)
    if seen and bool(((position_ids[:, 0] == 0) & (True if real is None else real[:, :seen].any(-1))).any()):
        raise ValueError(
            "position_ids start a new document behind cached tokens; "
            f"pass document_ids of shape [{rows}, {seen + new}] (cached and new tokens)"
        )
    if new == 1:
        return None
    if real is None:
        real = torch.ones(rows, seen + new, dtype=torch.bool, device=position_ids.device)
    ids = ids_from_position_ids(position_ids, real[:, seen:])
    if not bool((ids > 0).any()):
        return None
    return torch.cat([ids_from_padding(real[:, :seen]), ids], dim=-1)


def _refuse_spans(arguments: Mapping[str, Any]) -> None:
    for name in ("prefix_lengths", "span_ids"):
        if arguments.get(name) is not None:
            mask = "prefix|causal" if name == "prefix_lengths" else "spans|causal"
            raise ValueError(f"{name} is for a mask that asks for it, such as patch_model(model, '{mask}')")


def _read_spans(
    arguments: Mapping[str, Any], real: Tensor | None, packed: bool, rows: int, seen: int, new: int
) -> Tensor | None:
    """The marked span of each token ``[B, N]``; None where nobody said."""
    cache, span_ids, lengths = (arguments.get(name) for name in ("past_key_values", "span_ids", "prefix_lengths"))
    device = next(x.device for x in (arguments.get("input_ids"), arguments.get("inputs_embeds")) if x is not None)
    if span_ids is not None:
        if lengths is not None:
            raise ValueError("prefix_lengths and span_ids are both given; a prefix is the span that starts at 0")
        spans = renumbered(_per_token("span_ids", span_ids.to(device), rows, seen, new))
    else:
        if lengths is None and not seen:
            lengths = (
                prefix_lengths(cache) if prefix_lengths(cache) is not None else _prompt(arguments, real, rows, new)
            )
        elif lengths is not None and (seen or packed):
            why = "a cache holds its prefix since its first call" if seen else "rows hold several documents"
            raise ValueError(f"prefix_lengths are given where {why}; leave them out, or pass span_ids")
        if lengths is None and not seen:
            return None
        spans = torch.full((rows, seen + new), PADDING, device=device)
        if lengths is not None:
            spans = _spans_of_prefixes(lengths, spans, real)
    if real is not None:
        spans = torch.where(real, spans, PADDING)
    _refuse_half_spans(spans, seen)
    _refuse_seen_labels(arguments.get("labels"), spans, seen)
    return spans


def _spans_of_prefixes(lengths: Any, nothing: Tensor, real: Tensor | None) -> Tensor:
    lengths = torch.as_tensor(lengths, device=nothing.device).reshape(-1)
    rows = len(nothing)
    if lengths.is_floating_point() or rows % max(1, len(lengths)):
        raise ValueError(f"prefix_lengths must be {rows} integers, one a row, got {lengths.tolist()}")
    # `generate` repeats each row for its beams or its return sequences.
    lengths = lengths.repeat_interleave(rows // len(lengths))
    ones = torch.ones_like(nothing, dtype=torch.bool) if real is None else real
    if bool((lengths < 0).any()) or bool((lengths > ones.sum(-1)).any()):
        raise ValueError(
            f"the prefixes have {lengths.tolist()} tokens and the first call has {ones.sum(-1).tolist()}; a prefix "
            "must come in one call, since its tokens see each other both ways (no chunked prefill)"
        )
    return torch.where(ones & (ones.cumsum(-1) <= lengths[:, None]), 0, nothing)


def _prompt(arguments: Mapping[str, Any], real: Tensor | None, rows: int, new: int) -> Tensor | None:
    """The lengths of the prompts, if this is the first call of `generate`: there the prompt is the prefix."""
    to_keep = arguments.get("logits_to_keep")
    if torch.is_grad_enabled() or not isinstance(to_keep, int) or to_keep < 1:
        return None
    if not isinstance(arguments.get("past_key_values"), Cache):
        return None
    # The trap: a chunk of a prefill looks like a prompt, but for what is cut off a longer tensor for it.
    for name in ("attention_mask", "position_ids"):
        tensor = arguments.get(name)
        if tensor is not None and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
            raise ValueError(
                f"the {name} of this first call are cut off longer ones, as in chunked prefill, where a chunk would "
                "pass for the prompt; say the lengths: past_key_values=prefix_cache(model, lengths)"
            )
    counts = torch.full((rows,), new) if real is None else real.sum(-1)
    # Assisted decoding sends its first candidates along, and asks for as many logits more.
    return counts - (to_keep - 1)


def _refuse_half_spans(spans: Tensor, seen: int) -> None:
    for row in spans if seen else ():
        halves = set(row[:seen].tolist()) & set(row[seen:].tolist()) - {PADDING}
        if halves:
            raise ValueError(
                "a marked span starts in the cache and goes on in new tokens, which its first tokens have not seen; "
                "let a span come in one call"
            )


def _refuse_seen_labels(labels: Tensor | None, spans: Tensor, seen: int) -> None:
    if labels is None or labels.shape != spans[:, seen:].shape:
        return
    spans = spans[:, seen:]
    inside = (spans[:, 1:] >= 0) & (spans[:, 1:] == spans[:, :-1])
    if bool((inside & (labels[:, 1:] != -100)).any()):
        raise ValueError(
            "labels inside a prefix or a marked span are seen by the rows that predict them; set them to -100: "
            "labels = hf_masking.training.labels_behind(prefix_lengths, labels)"
        )
