"""The tensor that travels through Transformers' mask slot in place of a dense mask.

int32 ``[B, 1, 2, K + Q]``: positions, then documents, of all keys and then of all queries; where spans are marked a
third row says of each key in which. O(N), four-dimensional so that Transformers passes it through untouched, integer
so that another attention implementation refuses it. Where a cache knows its keys itself, K is 0.
"""

import torch
from torch import Tensor

from ..plan import Documents


def encode(documents: Documents) -> Tensor:
    positions = torch.cat([documents.key_positions, documents.query_positions], dim=-1)
    ids = torch.cat([documents.key_ids, documents.query_ids], dim=-1)
    rows = [positions, ids]
    if documents.key_spans is not None:
        rows.append(torch.nn.functional.pad(documents.key_spans.int(), (0, documents.query_ids.shape[-1])))
    return torch.stack(rows, dim=1)[:, None]


def decode(handle: Tensor, n_keys: int) -> Documents:
    (key_positions, query_positions), (key_ids, query_ids), *spans = (
        row.split([n_keys, handle.shape[-1] - n_keys], dim=-1) for row in handle[:, 0].unbind(1)
    )
    return Documents(query_positions, query_ids, key_positions, key_ids, spans[0][0] if spans else None)


def is_handle(value: object, length: int | None = None) -> bool:
    """Whether ``value`` is such a tensor, of ``length`` queries and keys together if given."""
    if not isinstance(value, Tensor) or value.dtype != torch.int32 or value.ndim != 4:
        return False
    return value.shape[1:3] in {(1, 2), (1, 3)} and length in (None, value.shape[3])
