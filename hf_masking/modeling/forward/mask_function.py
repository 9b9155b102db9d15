"""The mask function that Transformers calls: it turns the running batch into the tensor for the mask slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface, PreTrainedConfig

from ...plan import Documents
from ...plan.documents import PADDING, ids_from_padding
from .. import running
from ..batch import Batch
from ..in_graph import EVICTS, refuse_if
from ..patching.config import KEY, SAVED_ATTENTION
from ..sharding import Sharding
from . import mask_slot


def fill_mask_slot(
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
    """Return positions and documents of queries and keys in a tensor of O(N), see `mask_slot`.

    It holds those of the queries only where the layers of the cache know their keys.
    """
    if kv_offset and getattr(config, KEY, {}).get("replace_model_window"):
        raise ValueError(
            "a static cache keeps no more than the model's own window, which replace_model_window=True sets aside; "
            "use the default cache"
        )
    batch, compiling = running.current_batch(), torch.compiler.is_compiling()
    if batch is not None and batch.sharding is not None:
        return mask_slot.encode_shard(_documents_of_shard(batch, batch.sharding, device), batch.sharding)
    evicts = batch is not None and batch.cache is not None
    describe = _documents_outside if compiling and evicts else _documents
    slot = mask_slot.encode(describe(attention_mask, q_length, kv_length, q_offset, kv_offset, device))
    if batch is None:
        # `generate` asks ahead of a forward that it compiles: the shape is the same, whether prompts are padded or not.
        return slot.expand(batch_size, -1, -1, -1)
    if batch.attentions and not compiling:
        mask_slot.record_of(slot).attentions = True
    return slot


def _documents_of_shard(batch: Batch, sharding: Sharding, device: Any) -> Documents:
    """Return the documents of this rank's queries and of the keys of all ranks."""
    columns = torch.arange(sharding.total, device=device)
    ids = torch.zeros_like(columns)[None] if batch.ids is None else batch.ids.to(device)
    marks = None if batch.marks is None else batch.marks.to(device)
    return Documents.from_ids(ids, columns[sharding.columns], marks)


def _documents(
    attention_mask: Tensor | None, q_length: int, kv_length: int, q_offset: int | Tensor, kv_offset: int, device: Any
) -> Documents:
    """Return documents of the lengths that Transformers asks for, from the running batch or else from the 2D mask."""
    batch = running.current_batch() or Batch()
    if batch.cache is not None and batch.seen:
        # Its layers retain different keys, and know which.
        return batch.documents(torch.arange(0, device=device))
    ids = batch.ids
    if ids is None and attention_mask is not None and batch.packed is None:
        ids = ids_from_padding(attention_mask)
    query_columns = torch.arange(q_length, device=device) + q_offset
    columns = torch.arange(kv_offset + kv_length, device=device)
    if ids is None:
        ids = torch.zeros(1, len(columns), dtype=torch.int32, device=device)
    ids = _fitted(ids.to(device), len(columns))
    marks = None if batch.marks is None else _fitted(batch.marks.to(device), len(columns))
    # A static cache has empty columns after the last query.
    ids = torch.where(columns >= q_offset + q_length, PADDING, ids)
    whole = Documents.from_ids(ids, query_columns, marks)
    if kv_offset == 0:
        return whole
    _refuse_lost_keys(whole.key_positions >= 0, kv_offset, q_offset + q_length)
    return whole.of_keys(columns[kv_offset:])


# In a graph the number of cached tokens would be a constant, and every step of decoding another graph.
_documents_outside = torch.compiler.disable(_documents, reason=EVICTS)


def _fitted(x: Tensor, length: int) -> Tensor:
    return nn.functional.pad(x[..., :length], (0, length - min(length, x.shape[-1])), value=PADDING)


def _refuse_lost_keys(real: Tensor, kv_offset: int, seen: int | Tensor) -> None:
    """Refuse padding inside the window of a static cache: it holds the last columns, and the mask reaches further."""
    columns = torch.arange(real.shape[1], device=real.device)
    hole = (~real & (columns >= kv_offset) & (columns < seen)).any(-1)
    refuse_if(
        (hole & real[:, :kv_offset].any(-1)).any(),
        "attention_mask has a hole inside the window of a static cache, which has dropped keys that are needed; use "
        "the default cache",
    )


AttentionMaskInterface.register(KEY, fill_mask_slot)
AttentionMaskInterface.register(SAVED_ATTENTION, fill_mask_slot)
