"""The tensor that travels through Transformers' mask slot in place of a dense mask.

int32 ``[B, 1, 2, K + Q]``: positions, then documents, of all keys and then of all queries; where spans are marked a
third row says of each key in which. O(N), four-dimensional so that Transformers passes it through untouched, integer
so that another attention implementation refuses it. Where a cache knows its keys itself, K is 0.
"""

import torch
from torch import Tensor

from ...plan import Documents


def encode(documents: Documents) -> Tensor:
    return documents.encode()[:, None]


def decode(handle: Tensor, n_keys: int) -> Documents:
    return Documents.decode(handle[:, 0], n_keys)


def is_handle(value: object, length: int | None = None) -> bool:
    """Whether ``value`` is such a tensor, of ``length`` queries and keys together if given."""
    if not isinstance(value, Tensor) or value.dtype != torch.int32 or value.ndim != 4:
        return False
    # Compared one by one: `in` gives a compiler no answer about sizes that vary.
    return value.shape[1] == 1 and 2 <= value.shape[2] <= 3 and (length is None or value.shape[3] == length)
