"""The one place that turns the arguments of a forward into documents.

Transformers tells a mask function neither the position ids nor the document ids, so a forward pre-hook on every
(sub)model leaves what the batch says on a stack of the thread, where the mask function finds it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ..plan import Documents
from ..plan.documents import PADDING, ids_from_padding, ids_from_position_ids, renumbered
from .handle import is_handle
from .settings import KEY

_PACKED = "hf_masking_packed"  # set on a cache whose rows hold several documents


@dataclass(frozen=True)
class Batch:
    """What a forward says of its tokens, the cached ones first.

    ids: the document of each token ``[B, N]``, PADDING for none; None where every token is in document 0.
    packed: a row may hold several documents.
    """

    ids: Tensor | None = None
    packed: bool = False


class _Stack(threading.local):
    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, Batch]] = []


_stack = _Stack()


def current() -> Batch | None:
    """The batch of the innermost patched forward that is running in this thread."""
    return _stack.calls[-1][1] if _stack.calls else None


def enter(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *, lookahead: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: reads the batch, adopts the cache, takes ``document_ids`` out of the arguments."""
    if any(module is running for running, _ in _stack.calls):
        # No module runs inside itself: a KeyboardInterrupt went past the hooks, and what it left is stale.
        _stack.calls.clear()
    outer = _stack.calls[-1] if _stack.calls else None
    batch = None if outer is None or all(module is not inner for inner in outer[0].modules()) else outer[1]
    if batch is None:
        _refuse_another_implementation(module)
        arguments = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        kwargs = {name: value for name, value in kwargs.items() if name != "document_ids"}
        batch = _read(arguments)
        _refuse_generation(arguments, lookahead)
        if arguments.get("output_attentions"):
            raise ValueError(
                "attention weights are not kept under a mask; effective_mask(model, ...) shows what is seen"
            )
        if (cache := _ordinary_cache(module, arguments)) is not None:
            place = list(inspect.signature(module.forward).parameters).index("past_key_values")
            if place < len(args):
                args = (*args[:place], cache, *args[place + 1 :])
            else:
                kwargs["past_key_values"] = cache
    _stack.calls.append((module, batch))
    return args, kwargs


def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook that runs also after an exception; a call that failed in its pre-hook left nothing to undo."""
    if not _stack.calls or _stack.calls[-1][0] is not module:
        return
    _, batch = _stack.calls.pop()
    if batch.packed:
        returned = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        for value in (*kwargs.values(), *returned):
            if isinstance(value, Cache):
                setattr(value, _PACKED, True)


def documents(
    attention_mask: Tensor | None, q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int, device: Any
) -> Documents:
    """Documents for the sizes that Transformers asks a mask for, from the running batch or else from its 2D mask."""
    batch = current()
    ids = None if batch is None else batch.ids
    if ids is None and attention_mask is not None:
        ids = ids_from_padding(attention_mask)
    query_columns = torch.arange(q_length, device=device) + q_offset
    columns = torch.arange(kv_offset + kv_length, device=device)
    if ids is None:
        ids = torch.zeros(1, len(columns), dtype=torch.int32, device=device)
    ids = ids.to(device)[:, : len(columns)]
    ids = nn.functional.pad(ids, (0, len(columns) - ids.shape[1]), value=PADDING)
    # A static cache has columns behind the last query that hold nothing yet.
    ids = torch.where(columns >= q_offset + q_length, PADDING, ids)
    whole = Documents.from_ids(ids, query_columns)
    if kv_offset == 0:
        return whole
    _refuse_lost_keys(whole.key_positions >= 0, kv_offset, q_offset + q_length)
    return Documents(
        whole.query_positions, whole.query_ids, whole.key_positions[:, kv_offset:], whole.key_ids[:, kv_offset:]
    )


def _refuse_lost_keys(real: Tensor, kv_offset: int, seen: int | Tensor) -> None:
    """A static sliding cache keeps the last columns; with a hole among them a window by positions reaches further."""
    hole = (~real[:, kv_offset : int(seen)]).any(-1)
    if bool((hole & real[:, :kv_offset].any(-1)).any()):
        raise ValueError(
            "attention_mask has a hole inside the window of a static cache, which has dropped keys that are needed; "
            "use the default cache"
        )


def _read(arguments: Mapping[str, Any]) -> Batch:
    attention_mask, cache = arguments.get("attention_mask"), arguments.get("past_key_values")
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    if inputs is None or _is_prepared(attention_mask):
        return Batch()
    rows, new = inputs.shape[:2]
    seen = int(cache.get_seq_length()) if cache is not None else 0
    real = _read_padding(attention_mask, rows, seen, new)
    ids = _read_document_ids(arguments.get("document_ids"), rows, seen, new)
    if ids is None and seen and getattr(cache, _PACKED, False):
        raise ValueError(
            "this cache holds packed documents, so the document of a new token is unknown; "
            f"pass document_ids of shape [{rows}, {seen + new}] (cached and new tokens), or decode one document a row"
        )
    if ids is None:
        ids = _read_position_ids(arguments.get("position_ids"), real, rows, seen, new)
    if ids is None:
        return Batch(None if real is None else ids_from_padding(real))
    return Batch(ids if real is None else torch.where(real, ids, PADDING), packed=True)


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
    if attention_mask is None:
        return None
    if attention_mask.shape != (rows, seen + new):
        raise ValueError(
            f"attention_mask must cover the {seen} cached and {new} new tokens, shape [{rows}, {seen + new}], "
            f"got {list(attention_mask.shape)}"
        )
    return attention_mask.bool()


def _read_document_ids(document_ids: Tensor | None, rows: int, seen: int, new: int) -> Tensor | None:
    if document_ids is None:
        return None
    if document_ids.is_floating_point() or document_ids.shape not in {(rows, seen + new), (1, seen + new)}:
        got = f"{document_ids.dtype} of shape {list(document_ids.shape)}"
        raise ValueError(f"document_ids must be integers of shape [{rows}, {seen + new}], got {got}")
    return renumbered(document_ids).expand(rows, -1)


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


def _refuse_another_implementation(module: PreTrainedModel) -> None:
    """`set_attn_implementation` on a patched model would leave a model that silently attends to everything."""
    implementation = module.config.get_text_config()._attn_implementation
    if implementation != KEY:
        raise ValueError(
            f"attention was switched to {implementation!r} after patch_model, which loses the mask; "
            "call unpatch_model(model) for full attention, or patch_model(model, mask) again"
        )


def _refuse_generation(arguments: Mapping[str, Any], lookahead: int) -> None:
    if not lookahead:
        return
    cache = arguments.get("past_key_values")
    decodes = cache is not None and bool(cache.get_seq_length())
    # What `generate` asks for in every step, cached or not.
    asks_for_next_token = not torch.is_grad_enabled() and arguments.get("logits_to_keep") in (1, True)
    if decodes or asks_for_next_token:
        raise ValueError(
            f"the mask looks {lookahead} tokens ahead, so a model under it cannot generate; "
            "use a causal mask, for example patch_model(model, 'block_local:64,1')"
        )


def _ordinary_cache(module: PreTrainedModel, arguments: Mapping[str, Any]) -> Cache | None:
    """The cache is chosen from the mask, not from the config: layers that would drop keys are replaced while empty.

    Returns the cache to use where none was given and the model would make one that drops keys.
    """
    cache, use_cache = arguments.get("past_key_values"), arguments.get("use_cache")
    if cache is None:
        use_cache = getattr(module.config, "use_cache", False) if use_cache is None else use_cache
        if not use_cache:
            return None
        cache = DynamicCache(config=module.config)
        if not any(type(layer) is DynamicSlidingWindowLayer for layer in cache.layers):
            return None
        _use_ordinary_layers(cache)
        return cache
    if isinstance(cache, DynamicCache) and not cache.get_seq_length():
        _use_ordinary_layers(cache)
    return None


def _use_ordinary_layers(cache: Cache) -> None:
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
