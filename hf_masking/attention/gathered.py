"""Few queries, or keys with gaps: gather the keys that the queries may attend to, and attend to those densely.

This is how decoding runs. A bounded cache retains only the keys that later queries may attend to, so neighbours in the
cache need not be neighbours in the text; and for a single query a plan would cost more than the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..adaptive import Features
from ..plan import Documents
from . import decode_blocks, reference, sdpa
from .adaptive_reference import log_weights
from .inputs import Inputs
from .needed_keys import few, needed_keys

_MOST_PAIRS = 2**22  # of one chunk of queries, so that no mask of all queries x all keys is made
_MOST_QUERIES = 256  # of one chunk


def attend(inputs: Inputs) -> Tensor:
    """Attend to the keys that a few queries at a time may attend to."""
    query, options = inputs.query, inputs.options
    dense_kernel = options.softcap is None and options.sink_logits is None
    if dense_kernel and decode_blocks.can_do(inputs):
        return decode_blocks.attend(inputs)
    # Gradients, and what PyTorch's kernels do not compute, lose too much in half precision.
    half = query.dtype.itemsize <= 2
    precise = torch.float32 if half and (inputs.needs_gradients or not dense_kernel) else query.dtype
    attend_to = _densely if dense_kernel else _by_reference
    outputs = [attend_to(_gather(inputs, rows, precise)) for rows in _chunks(inputs)]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(query.dtype)


class _Gathered(NamedTuple):
    """Some of the queries and the keys that they may attend to.

    allowed: the pairs that the mask allows, or the logarithms of their weights, ``[B, heads of the mask, N, M]``; None
        if it allows every pair.
    """

    inputs: Inputs
    allowed: Tensor | None


def _densely(gathered: _Gathered) -> Tensor:
    inputs, options = gathered.inputs, gathered.inputs.options
    return sdpa.under_mask(*inputs.tensors, gathered.allowed, scale=options.scale, dropout=options.dropout)


def _by_reference(gathered: _Gathered) -> Tensor:
    return reference.attend(gathered.inputs)


def _chunks(inputs: Inputs) -> list[slice]:
    """Return queries that are computed together."""
    mask, (batch, heads, n_queries, _), n_keys = inputs.mask, inputs.query.shape, inputs.key.shape[2]
    masks = batch * heads if mask.is_adaptive else inputs.documents.query_positions.shape[0] * len(mask.heads)
    size = max(1, min(_MOST_QUERIES, _MOST_PAIRS // max(1, masks * n_keys)))
    return [slice(first, first + size) for first in range(0, n_queries, size)]


def _gather(inputs: Inputs, rows: slice, dtype: torch.dtype) -> _Gathered:
    """Return some of the queries, and of the keys those that they need, in the precision of the computation."""
    documents, columns, allowed, features = _needed(inputs, rows)
    key, value = (x if columns is None else x.index_select(2, columns) for x in (inputs.key, inputs.value))
    sinks = inputs.options.sink_logits
    options = inputs.options._replace(sink_logits=None if sinks is None else sinks.to(dtype))
    some = Inputs(inputs.query[:, :, rows], key, value, inputs.mask, documents, options, features)
    return _Gathered(some.to(dtype), allowed)


def _needed(inputs: Inputs, rows: slice) -> tuple[Documents, Tensor | None, Tensor | None, Sequence[Features]]:
    """Return documents, columns of keys (None: all), allowed pairs and features for some of the queries."""
    mask, documents = inputs.mask, inputs.documents
    if not mask.is_adaptive:
        return *needed_keys(mask, documents, rows.start, rows.stop), ()
    documents = documents.of_queries(rows)
    features = [one.of_queries(rows) for one in inputs.features]
    weights = log_weights(mask, documents, inputs.query[:, :, rows], inputs.key, features)
    if mask.selection is not None:
        # A selection scores all keys.
        return documents, None, weights, features
    columns = few((weights > -torch.inf).flatten(0, 2).any(0))
    if columns is None:
        return documents, None, weights, features
    return documents.of_keys(columns), columns, weights[..., columns], [one.of_keys(columns) for one in features]
