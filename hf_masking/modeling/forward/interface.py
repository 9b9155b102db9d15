"""The attention function that Transformers calls: it attends under the mask of the calling layer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ...adaptive import Features
from ...attention import attention_with_probabilities, compiled, masked_attention, name_of
from ...masks import MaskExpression
from ...plan import Documents
from .. import running
from ..caching.adopt import layer_of
from ..caching.layer import MaskedLayer
from ..features import with_keys
from ..in_graph import ADAPTS, EVICTS
from ..patching.config import KEY, SAVED_ATTENTION
from ..patching.layer_mask import LayerMask, attached, is_cross_attention
from ..running import Running
from . import mask_slot

logger = logging.getLogger("hf_masking")

_CALLS = "attention calls"  # what `recording` observes

# Keyword arguments that reach an attention function and do not change the scores. The hooks have taken out those of the
# loss before.
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
class RecordedCall:
    """One call of a layer's attention.

    own, mask: the layer's mask, and the mask it ran under, which the model's own window may clip.
    query, key, value: ``[B, heads, length, head size]``.
    features: those of an adaptive mask.
    """

    layer: int
    own: MaskExpression
    mask: MaskExpression
    documents: Documents
    query: Tensor
    key: Tensor
    value: Tensor
    features: tuple[Features, ...]


@contextmanager
def recording() -> Iterator[list[RecordedCall]]:
    """Collect every attention call of this thread."""
    with running.observing(_CALLS) as calls:
        yield calls


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
    """Return the output ``[B, N, H, Dv]``, and the attention probabilities if the caller wants them."""
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
    call = running.current()
    cached = _cache_layer(module, call)
    if cached is not None:
        cached.eviction.require(layer_mask, sliding_window)
    features = _features(mask, call, cached, query.shape[2], key.shape[2])
    summaries = _summaries(mask, call, cached, query.shape[2])
    if slot is not None and mask_slot.is_shard(slot, query.shape[2], key.shape[2]):
        whole, sharding = mask_slot.decode_shard(slot)
        key, value, documents = sharding.exchange(mask, whole, key, value)
    else:
        documents = _documents(module, slot, call, cached, query.shape[2], key.shape[2])
    if (calls := running.observer(_CALLS)) is not None:
        layer = int(getattr(module, "layer_idx", 0))
        calls.append(RecordedCall(layer, layer_mask.mask, mask, documents, query, key, value, features))
    described: dict[str, Any] = options | {"features": features}
    probabilities = None
    if mask_slot.wants_attentions(slot) or (call is not None and call.batch.attentions):
        warn_of_dense_attention_once()
        output, probabilities = attention_with_probabilities(query, key, value, mask, documents, **described)
        probabilities = probabilities if cached is None else cached.over_all_columns(probabilities)
    else:
        described |= {"documents": documents, "summaries": summaries, "backend": layer_mask.backend}
        output = masked_attention(query, key, value, mask, **described)
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
    call = running.current()
    asked = running.observer(_CALLS) is not None or (call is not None and call.batch.attentions)
    if name is None or _cache_layer(module, call) is not None or asked:
        return _attend_outside(module, query, key, value, slot, layer_mask, sliding_window, options)
    if slot is None or not mask_slot.is_slot(slot, query.shape[2] + key.shape[2]):
        raise _without_positions(module, slot, query.shape[2], key.shape[2])
    return compiled.attend(query, key, value, name, slot[:, 0], backend=layer_mask.backend, **options), None


_attend_outside = torch.compiler.disable(_attend, reason=f"{EVICTS}; {ADAPTS}")


@torch.compiler.assume_constant_result
def _name_of(layer_mask: LayerMask, sliding_window: int | None) -> str | None:
    """Return what a compiled graph calls the mask of a layer; None for an adaptive one, which no graph computes."""
    return name_of(layer_mask.under(sliding_window))


@functools.lru_cache
def warn_of_dense_attention_once() -> None:
    logger.warning(
        "output_attentions=True: each call that asks for attention probabilities runs dense attention, quadratic in "
        "time and memory"
    )


def _cache_layer(module: nn.Module, call: Running | None) -> MaskedLayer | None:
    """Return the layer of the cache that this attention layer uses; None for no cache, or one that is not ours."""
    return None if call is None else layer_of(call.batch.cache, module)


def _features(
    mask: MaskExpression, call: Running | None, cached: MaskedLayer | None, n_queries: int, n_keys: int
) -> tuple[Features, ...]:
    """Return the features of each weighting for all queries and keys, those of cached keys included."""
    features = call.features if call is not None and mask.weightings else ()
    if all(one.key is None for one in features) or n_queries == n_keys:
        return features
    if cached is None or cached.features is None or cached.features.shape[2] != n_keys:
        raise ValueError(
            f"'{mask}' needs features of every key, and this cache stores keys and values only; use the default cache"
        )
    return with_keys(features, cached.features)


def _summaries(mask: MaskExpression, call: Running | None, cached: MaskedLayer | None, n_queries: int) -> Tensor | None:
    """Return the cached summaries of complete blocks of keys, for a selection in a decode step."""
    if mask.selection is None or n_queries > 1 or cached is None or call is None or call.batch.packed:
        return None
    return cached.block_summaries(mask.selection, call)


def _documents(
    module: nn.Module,
    slot: Tensor | None,
    call: Running | None,
    cached: MaskedLayer | None,
    n_queries: int,
    n_keys: int,
) -> Documents:
    """Return the positions and documents of the queries and keys of this call.

    The mask slot holds them, those of the keys of a static cache included. Where a `MaskedLayer` has evicted keys, the
    slot holds those of the queries only, and `Batch.documents` knows those of the columns that the layer retains.
    """
    if slot is not None and mask_slot.is_slot(slot, n_queries + n_keys):
        return mask_slot.decode(slot, n_keys)
    described = call is not None and call.batch.new == n_queries and mask_slot.is_slot(slot, n_queries)
    if call is not None and described and cached is not None and len(cached.columns) == n_keys:
        return call.documents(cached.eviction.reads, cached.columns)
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
        f"{type(module).__name__} runs on the attention of hf_masking but has no mask; load the checkpoint with "
        "hf_masking.from_pretrained(path), or call hf_masking.patch_model(model); attn_implementation='sdpa' loads it "
        "with full attention; encoders beside a patched decoder are not supported"
    )


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in HARMLESS)
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which hf_masking does not know "
            "and does not ignore"
        )
    if kwargs.get("is_causal") is False:
        raise ValueError(
            f"{type(module).__name__} was called with is_causal=False, which asks for bidirectional attention, but the "
            "mask decides; leave it out, or use a bidirectional mask such as 'block_causal:64'"
        )


AttentionInterface.register(KEY, attend)
# A checkpoint loaded by Transformers alone: its first forward says what to call.
AttentionInterface.register(SAVED_ATTENTION, attend)
