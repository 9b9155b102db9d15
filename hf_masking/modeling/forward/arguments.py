"""Read the arguments of a forward into a `Batch`: also those that the model itself does not know (`OWN`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...plan.documents import PADDING, ids_from_padding, ids_from_position_ids, renumbered
from ..batch import Batch
from ..caching.record import record_of
from ..in_graph import holds, refuse_if
from .given import check_ids
from .marks import Needs, read_marks
from .mask_slot import is_slot

# The arguments by which FlashAttention knows the documents of a flattened batch; its collators pass all of them.
_FLATTENED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
_MARKS = ("prefix_lengths", "span_ids", "prompt_lengths", "prompt_mask")
OWN = ("document_ids", *_MARKS, *_FLATTENED)  # arguments that the model does not know


def read(arguments: Mapping[str, Any], cache: Cache | None, needs: Needs, *, caches: bool, **beside: Any) -> Batch:
    """Return the batch of a forward.

    Parameters:
        arguments: those of the forward, by name.
        cache: the cache, if its layers are `MaskedLayer`s.
        needs: what the model's masks need to know about a batch.
        caches: the forward fills a cache of any kind.
        beside: the fields of a `Batch` that are not about its tokens.
    """
    arguments = _with_choices_as_rows(arguments)
    position_ids = arguments.get("position_ids")
    # If they start a new document, the cache holds packed documents.
    restarts = caches and position_ids is not None and position_ids.shape[-1] > 1
    flattened = any(arguments.get(name) is not None for name in _FLATTENED)
    if torch.compiler.is_compiling() and (needs.names or restarts or flattened):
        return _read_outside(arguments, cache, needs, beside)
    return _read(arguments, cache, needs, beside)


def _read(arguments: Mapping[str, Any], cache: Cache | None, needs: Needs, beside: dict[str, Any]) -> Batch:
    attention_mask, given = arguments.get("attention_mask"), arguments.get("past_key_values")
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    if inputs is None or _is_prepared(attention_mask):
        return Batch(**beside)
    rows, new = inputs.shape[:2]
    length = 0 if given is None else given.get_seq_length()
    seen = _columns_before(length, arguments, new)
    real = _read_padding(attention_mask, rows, seen, new)
    ids = _read_document_ids(arguments.get("document_ids"), rows, seen, new)
    if ids is None and seen and record_of(given).packed:
        raise ValueError(
            "this cache holds packed documents, so the document of a new token is unknown; "
            f"pass document_ids of shape [{rows}, {seen + new}] (cached and new tokens), or decode one document a row"
        )
    if ids is None:
        ids = _read_position_ids(arguments.get("position_ids"), real, rows, seen, new, length)
    ids = _with_flattened(ids, arguments, rows, seen, new)
    packed = ids is not None
    if ids is None:
        ids = None if real is None else ids_from_padding(real)
    elif real is not None:
        ids = torch.where(real, ids, PADDING)
    marks = read_marks(arguments, needs, cache, real, ids if packed else None, (rows, seen, new))
    ids, marks = _one_if_alike(ids), _one_if_alike(marks)
    if marks is not None and len(marks) > 1 and ids is None:
        ids = torch.zeros_like(marks[:, 0])
    if marks is not None and ids is not None:
        alike = max(len(ids), len(marks))
        ids, marks = ids.expand(alike, -1), marks.to(ids.device).expand(alike, -1, -1)
    return Batch(seen, new, ids, packed, marks, cache, **beside)


def _with_choices_as_rows(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return arguments with one row per choice for ``[batch, choices, tokens]``, as GPT-2's double heads take them.

    The trap: a third axis may also be that of codebooks, ``[batch, tokens, codebooks]``.
    """
    ids, real = arguments.get("input_ids"), arguments.get("attention_mask")
    if ids is None or ids.ndim < 3 or not ("mc_token_ids" in arguments or getattr(real, "ndim", 0) == ids.ndim):
        return arguments
    of_tokens = ("input_ids", "attention_mask", "document_ids", "span_ids", "prompt_mask", "labels")
    given = {name: arguments[name] for name in of_tokens if arguments.get(name) is not None}
    return {**arguments, **{name: tensor.flatten(end_dim=-2) for name, tensor in given.items()}}


_read_outside = torch.compiler.disable(
    _read,
    reason="prefix_lengths, span_ids, prompt_lengths, prompt_mask, cu_seq_lens_q and, where a cache is filled, "
    "position_ids are read outside the graph, since what follows depends on their values; leave fullgraph=True out, or "
    "pass use_cache=False for position_ids and document_ids instead of cu_seq_lens_q",
)


def _columns_before(length: int | Tensor, arguments: Mapping[str, Any], new: int) -> int:
    """Return the number of cached columns; a static cache counts them in a tensor, unknown in a compiled graph."""
    if not torch.compiler.is_compiling() or isinstance(length, int):
        return int(length)
    covering = (arguments.get(name) for name in ("attention_mask", "document_ids"))
    return next((x.shape[-1] for x in covering if x is not None), new) - new


def _one_if_alike(rows: Tensor | None) -> Tensor | None:
    """Return one row if all are alike: they are computed as one."""
    return rows if rows is None or not holds((rows == rows[:1]).all()) else rows[:1]


def _is_prepared(attention_mask: Any) -> bool:
    """Return whether the mask slot is filled already, as `generate` does before a compiled forward."""
    values = list(attention_mask.values()) if isinstance(attention_mask, Mapping) else [attention_mask]
    if all(value is None or is_slot(value) for value in values):
        return any(value is not None for value in values)
    for value in values:
        if isinstance(value, Tensor) and value.ndim == 2 and value is attention_mask:
            return False
        got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"a patched model takes the 2D padding mask [batch, tokens] as attention_mask, got {got}; "
            "give the pattern as a mask instead: patch_model(model, 'window:256|sinks:4')"
        )
    return False


def _read_padding(attention_mask: Tensor | None, rows: int, seen: int, new: int) -> Tensor | None:
    """Return which tokens are real ``[B, N]``; None if all are."""
    if attention_mask is None:
        return None
    if attention_mask.shape != (rows, seen + new):
        raise ValueError(
            f"attention_mask must cover the {seen} cached and {new} new tokens, shape [{rows}, {seen + new}], "
            f"got {list(attention_mask.shape)}"
        )
    real = attention_mask.bool()
    return None if holds(real.all()) else real


def _read_document_ids(document_ids: Tensor | None, rows: int, seen: int, new: int) -> Tensor | None:
    if document_ids is None:
        return None
    check_ids("document_ids", document_ids, rows, seen + new)
    return renumbered(document_ids).expand(rows, -1)


def _with_flattened(ids: Tensor | None, arguments: Mapping[str, Any], rows: int, seen: int, new: int) -> Tensor | None:
    """Return the documents of a flattened batch; if documents are known already, they must be the same."""
    given = [name for name in _FLATTENED if arguments.get(name) is not None]
    if not given:
        return ids
    starts, of_keys = arguments.get("cu_seq_lens_q"), arguments.get("cu_seq_lens_k")
    whole = rows == 1 and not seen and (of_keys is None or (starts is not None and torch.equal(starts, of_keys)))
    if not whole or starts is None or starts[0] != 0 or starts[-1] != new:
        raise ValueError(
            f"{', '.join(given)} must give where the documents of one row of {new} tokens begin, and where it ends "
            f"(cu_seq_lens_q = cu_seq_lens_k = [0, ..., {new}]), with nothing cached; got {rows} rows, {seen} cached "
            "tokens; pass document_ids= for packed documents"
        )
    lengths = starts.diff()
    flattened = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)[None]
    if ids is not None and not _are_alike(ids, flattened.to(ids.device)):
        raise ValueError(
            "cu_seq_lens_q begins other documents than document_ids or position_ids do; pass one of them only"
        )
    return flattened if len(lengths) > 1 else ids


def _are_alike(ids: Tensor, others: Tensor) -> bool:
    """Return whether two numberings ``[1, N]`` tell the same tokens apart."""
    pairs = torch.cat([ids, others]).unique(dim=1).shape[1]
    return pairs == len(ids.unique()) == len(others.unique())


def _read_position_ids(
    position_ids: Tensor | None, real: Tensor | None, rows: int, seen: int, new: int, length: int | Tensor
) -> Tensor | None:
    """Return document ids if position ids start again somewhere; those with several axes (images) do not show it."""
    if position_ids is None or position_ids.ndim != 2:
        return None
    position_ids = position_ids.expand(rows, -1)
    if seen or isinstance(length, Tensor):
        refuse_if(
            (_starts_anew(position_ids, real, seen) & (length > 0)).any(),
            "position_ids start a new document after cached tokens; pass document_ids of shape [batch, cached and new "
            "tokens]",
        )
    if new == 1:
        return None
    if real is None:
        real = torch.ones(rows, seen + new, dtype=torch.bool, device=position_ids.device)
    ids = ids_from_position_ids(position_ids, real[:, seen:])
    if not torch.compiler.is_compiling() and not bool((ids > 0).any()):
        return None
    return torch.cat([ids_from_padding(real[:, :seen]), ids], dim=-1)


def _starts_anew(position_ids: Tensor, real: Tensor | None, seen: int) -> Tensor:
    """Return which rows have cached tokens and a first new token at position 0 (padding may have position 0)."""
    if real is None:
        return position_ids[:, 0] == 0
    cached, new = real[:, :seen], real[:, seen:]
    first = position_ids.gather(1, new.int().argmax(-1, keepdim=True))[:, 0]
    return cached.any(-1) & new.any(-1) & (first == 0)
