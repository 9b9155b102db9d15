"""The tensor that travels through Transformers' mask slot in place of a dense mask.

int32 ``[B, 1, 2, K + Q]``: positions, then documents, of all keys and then of all queries; where masks need marks, two
more rows have those of each key. It is O(N), four-dimensional so that Transformers passes it on unchanged, and of
integers so that another attention implementation refuses it. Where the layers of a cache know their keys, K is 0.

Under sequence parallelism the keys are those of all ranks and the queries those of this one, and a last column has the
number of the `Sharding`: reentrant gradient checkpointing hands layers another tensor with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...plan import Documents
from ..sharding import Sharding

_ATTRIBUTE = "hf_masking"  # the attribute of such a tensor that holds its SlotRecord


@dataclass
class SlotRecord:
    """Notes that the layers of a forward share through the tensor that all of them get.

    documents, sharding: the decoded tensor.
    attentions: the caller wants attention probabilities; layers that gradient checkpointing runs again want them, too.
    """

    documents: Documents | None = None
    sharding: Sharding | None = None
    attentions: bool = False


def encode(documents: Documents) -> Tensor:
    """Return the tensor for documents."""
    return documents.encode()[:, None]


def decode(slot: Tensor, n_keys: int) -> Documents:
    """Return the documents in a tensor, decoded once."""
    record = record_of(slot)
    if record.documents is None:
        record.documents = Documents.decode(slot[:, 0], n_keys)
    return record.documents


def encode_shard(documents: Documents, sharding: Sharding) -> Tensor:
    """Return the tensor for the documents of a rank's queries and of all ranks' keys."""
    return torch.nn.functional.pad(encode(documents), (0, 1), value=sharding.number)


def is_shard(value: object, n_queries: int, n_keys: int) -> bool:
    """Return whether a value is a tensor of `encode_shard`, for a layer with as many queries as keys of its own."""
    return isinstance(value, Tensor) and is_slot(value) and n_queries == n_keys and value.shape[3] > 2 * n_queries


def decode_shard(slot: Tensor) -> tuple[Documents, Sharding]:
    """Return the documents in such a tensor, decoded once, and the sharding."""
    record = record_of(slot)
    if record.documents is None or record.sharding is None:
        record.sharding = Sharding.numbered(int(slot[0, 0, 0, -1]))
        record.documents = Documents.decode(slot[:, 0, :, :-1], record.sharding.total)
    return record.documents, record.sharding


def is_slot(value: object, length: int | None = None) -> bool:
    """Return whether a value is such a tensor, with this number of queries and keys together if given."""
    if not isinstance(value, Tensor) or value.dtype != torch.int32 or value.ndim != 4:
        return False
    # Compared one by one: the compiler cannot answer `in` for sizes that vary.
    return value.shape[1] == 1 and 2 <= value.shape[2] <= 4 and (length is None or value.shape[3] == length)


def record_of(slot: Tensor) -> SlotRecord:
    """Return the record of such a tensor, which gets one if it has none."""
    record: SlotRecord | None = getattr(slot, _ATTRIBUTE, None)
    if record is None:
        record = SlotRecord()
        setattr(slot, _ATTRIBUTE, record)
    return record


def wants_attentions(slot: Tensor | None) -> bool:
    """Return whether the forward that filled the slot wants attention probabilities."""
    record: SlotRecord | None = getattr(slot, _ATTRIBUTE, None)
    return record is not None and record.attentions
