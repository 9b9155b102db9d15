"""The two functions that Transformers calls: one makes the batch's handle, the other attends under a layer's mask."""

from __future__ import annotations

import functools
import logging
import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from ...adaptive import Features
from ...attention import attention_with_probabilities, compiled, masked_attention, name_of, takes_gaps
from ...masks import Causal, MaskExpression
from ...plan import Documents
from .. import batch
from ..base_model.own_window import OwnWindow
from ..caching.layer import MaskedLayer, layer_of
from ..features import with_keys
from ..in_graph import ADAPTS, EVICTS
from ..patching.config import KEY as IMPLEMENTATION
from . import mask_slot

logger = logging.getLogger("hf_masking")

_LAYER = "hf_masking_layer"  # the attribute of an attention module that holds its LayerMask
_DECODED = "hf_masking_documents"  # the attribute of a handle that keeps what it says
# The attribute of a handle whose forward wants attention probabilities. Gradient checkpointing runs layers again when
# that forward is over, and must find the same.
_ATTENTIONS = "hf_masking_attentions"

# Keyword arguments that reach an attention function and do not touch the scores; what the loss takes is taken out by
# the hooks before.
HARMLESS = {
    "cache_position",
    "is_causal",
    "logits_to_keep",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


@dataclass(frozen=True)
class LayerMask:
    """The mask of one layer, and whether the window that the model has itself is set aside."""

    mask: MaskExpression
    backend: str = "auto"
    replace_model_window: bool = False

    def under(self, sliding_window: int | None) -> MaskExpression:
        """Return the mask as it is in a layer with such a window of the model's own."""
        if not sliding_window or self.replace_model_window:
            return self.mask
        return self.mask & OwnWindow(sliding_window)


def attach(module: nn.Module, layer_mask: LayerMask) -> None:
    setattr(module, _LAYER, layer_mask)


def detach(module: nn.Module) -> None:
    if hasattr(module, _LAYER):
        delattr(module, _LAYER)


def attached(module: nn.Module) -> LayerMask | None:
    return getattr(module, _LAYER, None)


def is_cross_attention(module: nn.Module) -> bool:
    """Whether an attention module reads the keys of an encoder (models say so in their own ways)."""
    return bool(getattr(module, "is_cross_attention", False)) or "CrossAttention" in type(module).__name__


@dataclass(frozen=True)
class Call:
    """One call of a layer's attention: its own mask, the mask it ran under (with the model's window), and on what.

    query, key, value: ``[B, heads, length, head size]``; features: what a mask that looks at the content has read.
    """

    layer: int
    own: MaskExpression
    mask: MaskExpression
    documents: Documents
    query: Tensor
    key: Tensor
    value: Tensor
    features: tuple[Features, ...]


class _Recorder(threading.local):
    def __init__(self) -> None:
        self.calls: list[Call] | None = None


_recorder = _Recorder()


@contextmanager
def recording() -> Iterator[list[Call]]:
    """Collects every attention call of this thread."""
    _recorder.calls, before = [], _recorder.calls
    try:
        yield _recorder.calls
    finally:
        _recorder.calls = before


def describe_batch(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    config: PreTrainedConfig | None = None,
    **kwargs: Any,
) -> Tensor:
    """The mask function: positions and documents of queries and keys, in a tensor of O(N)."""
    if kv_offset and getattr(config, IMPLEMENTATION, {}).get("replace_model_window"):
        raise ValueError(
            "a static cache keeps no more than the model's own window, which replace_model_window=True sets aside; "
            "use the default cache"
        )
    running, compiling = batch.current(), torch.compiler.is_compiling()
    evicts = running is not None and running.cache is not None
    documents = batch.documents_outside if compiling and evicts else batch.documents
    encoded = mask_slot.encode(documents(attention_mask, q_length, kv_length, q_offset, kv_offset, device))
    if running is None:
        # `generate` asks ahead of a forward that it compiles: of one shape, whether prompts are padded or not.
        return encoded.expand(batch_size, -1, -1, -1)
    if running.attentions and not compiling:
        setattr(encoded, _ATTENTIONS, True)
    return encoded


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function: the output ``[B, Nq, Hq, Dv]``, and the attention probabilities if they are wanted."""
    layer_mask = attached(module)
    if layer_mask is None:
        _refuse_without_mask(module)
    _refuse_unknown(module, kwargs)
    options: dict[str, Any] = {
        "scale": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "dropout": dropout,
        "softcap": softcap,
        "sink_logits": s_aux,
    }
    run = _attend_compiled if torch.compiler.is_compiling() else _attend
    output, probabilities = run(module, query, key, value, attention_mask, layer_mask, sliding_window, options)
    return output.transpose(1, 2).contiguous(), probabilities


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot: Tensor | None,
    layer_mask: LayerMask,
    sliding_window: int | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    mask = layer_mask.under(sliding_window)
    cached = _cache_layer(module)
    features: tuple[Features, ...] = ()
    reads = mask
    if mask.is_adaptive:
        features, reads = _content(mask, cached, query.shape[2], key.shape[2])
    if cached is not None:
        cached.bind(mask, reads if takes_gaps(layer_mask.backend) else None)
    documents = _documents(module, slot, reads, cached, query.shape[2], key.shape[2])
    if _recorder.calls is not None:
        layer = int(getattr(module, "layer_idx", 0))
        _recorder.calls.append(Call(layer, layer_mask.mask, mask, documents, query, key, value, features))
    described: dict[str, Any] = options | {"features": features}
    probabilities = None
    if _wants_attentions(slot):
        tell_the_price_once()
        output, probabilities = attention_with_probabilities(query, key, value, mask, documents, **described)
        probabilities = probabilities if cached is None else cached.over_all_columns(probabilities)
    else:
        output = masked_attention(query, key, value, mask, documents=documents, backend=layer_mask.backend, **described)
    return output, probabilities


def _attend_compiled(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slot: Tensor | None,
    layer_mask: LayerMask,
    sliding_window: int | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    name = _name_of(layer_mask, sliding_window)
    running = batch.current()
    asked = _recorder.calls is not None or (running is not None and running.attentions)
    if name is None or _cache_layer(module) is not None or asked:
        return _attend_outside(module, query, key, value, slot, layer_mask, sliding_window, options)
    if slot is None or not mask_slot.is_handle(slot, query.shape[2] + key.shape[2]):
        raise _without_positions(module, slot, query.shape[2], key.shape[2])
    return compiled.attend(query, key, value, name, slot[:, 0], backend=layer_mask.backend, **options), None


_attend_outside = torch.compiler.disable(_attend, reason=f"{EVICTS}; {ADAPTS}")


@torch.compiler.assume_constant_result
def _name_of(layer_mask: LayerMask, sliding_window: int | None) -> str | None:
    """What a compiled graph calls the mask of a layer; None for an adaptive one, which it does not compute."""
    return name_of(layer_mask.under(sliding_window))


def _wants_attentions(slot: Tensor | None) -> bool:
    running = batch.current()
    return getattr(slot, _ATTENTIONS, False) or (running is not None and running.attentions)


@functools.lru_cache
def tell_the_price_once() -> None:
    logger.warning(
        "output_attentions=True: each call that asks for attention probabilities runs dense attention, quadratic in "
        "time and memory"
    )


def _cache_layer(module: nn.Module) -> MaskedLayer | None:
    running = batch.current()
    return None if running is None else layer_of(running.cache, module)


def _content(
    mask: MaskExpression, cached: MaskedLayer | None, n_queries: int, n_keys: int
) -> tuple[tuple[Features, ...], MaskExpression]:
    """What the leaves of a mask that looks at the content have read, and the keys that later queries may read."""
    features = _features(mask, cached, n_queries, n_keys)
    return features, _reads(mask, features)


def _features(mask: MaskExpression, cached: MaskedLayer | None, n_queries: int, n_keys: int) -> tuple[Features, ...]:
    """Of all queries and keys."""
    features, running = batch.features(), batch.current()
    if n_queries == 1 and cached is not None and running is not None and not running.packed:
        features = tuple(
            replace(one, summaries=cached.block_summaries(leaf, running)) if leaf.selects else one
            for leaf, one in zip(mask.leaves, features, strict=True)
        )
    if all(one.key is None for one in features) or n_queries == n_keys:
        return features
    if cached is None or cached.features is None or cached.features.shape[2] != n_keys:
        raise ValueError(
            f"'{mask}' reads something of every key, and this cache keeps keys and values only; use the default cache"
        )
    return with_keys(features, cached.features)


def _reads(mask: MaskExpression, features: Sequence[Features]) -> MaskExpression:
    """As a static mask."""
    graded = mask.normal_form()
    if any(leaf.selects for leaf in graded.leaves):
        # Every block is scored, also where an intersection then leaves it out.
        return Causal() if graded.full is None else graded.full | Causal()
    reads = [leaf.reads(read) for leaf, read in zip(graded.leaves, features, strict=True)]
    assert graded.domain is not None
    read = functools.reduce(operator.and_, (one for one in reads if one != Causal()), graded.domain)
    return read if graded.full is None else graded.full | read


def _documents(
    module: nn.Module,
    slot: Tensor | None,
    mask: MaskExpression,
    cached: MaskedLayer | None,
    n_queries: int,
    n_keys: int,
) -> Documents:
    """What the mask slot says, or, of keys that are cached already, the cache."""
    running = batch.current()
    if slot is not None and mask_slot.is_handle(slot, n_queries + n_keys):
        # All layers of a forward are handed the same tensor: where its documents stand is worked out once.
        documents: Documents | None = getattr(slot, _DECODED, None)
        if documents is None:
            documents = mask_slot.decode(slot, n_keys)
            setattr(slot, _DECODED, documents)
        return documents
    described = running is not None and running.new == n_queries and mask_slot.is_handle(slot, n_queries)
    if running is not None and described and cached is not None and len(cached.columns) == n_keys:
        return running.kept(mask, cached.columns)
    raise _without_positions(module, slot, n_queries, n_keys)


def _without_positions(module: nn.Module, slot: Tensor | None, n_queries: int, n_keys: int) -> ValueError:
    return ValueError(
        f"{type(module).__name__} was called for {n_queries} queries and {n_keys} keys without this batch's "
        f"positions (its mask slot holds {None if slot is None else list(slot.shape)}); cross-attention, context "
        "parallelism and continuous batching are not supported: call the patched model itself, or "
        "unpatch_model(model) first"
    )


def _refuse_without_mask(module: nn.Module) -> NoReturn:
    if is_cross_attention(module):
        raise ValueError(
            f"{type(module).__name__} is a cross-attention, for which masks are not defined; unpatch_model(model) first"
        )
    raise ValueError(
        f"{type(module).__name__} runs on attn_implementation={IMPLEMENTATION!r} but has no mask; call "
        "hf_masking.patch_model(model), load with hf_masking.from_pretrained(path), "
        "or load with attn_implementation='sdpa' for full attention; encoders beside a patched decoder are not "
        "supported"
    )


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in HARMLESS)
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which hf_masking does not know "
            "and will not ignore"
        )
    if kwargs.get("is_causal") is False:
        raise ValueError(
            f"{type(module).__name__} was called with is_causal=False, which asks for bidirectional attention, and the "
            "mask says what is seen; leave it out, or use a mask that is bidirectional, such as 'block_causal:64'"
        )


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, describe_batch)
