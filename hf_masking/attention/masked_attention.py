"""`masked_attention`: one function for all backends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adaptive import Features
from ..masks import MaskExpression
from ..plan import Documents
from ..plan.documents import renumbered
from ..spec import parse_mask
from . import compiled, operators
from .backends import check_backend
from .dispatch import run
from .inputs import Inputs, Options


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskExpression | str,
    *,
    documents: Tensor | Documents | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    features: Sequence[Features] = (),
    summaries: Tensor | None = None,
) -> Tensor:
    """Attend so that query i uses key j only where the mask allows it.

    A query that may attend to nothing gives output 0 and gradient 0. When there are fewer queries than keys, the
    queries are the last positions. Masking adds -inf to the scores; multiplying them by 0 would leave weight exp(0).

    Parameters:
        query: ``[B, H, N, D]``.
        key: ``[B, G, M, D]``; G divides H.
        value: ``[B, G, M, Dv]``.
        mask: a mask or its spec.
        documents: ``[B, M]`` integers, the document of each key, negative for padding; or `Documents`.
        scale: factor of the scores, any finite number; by default ``1 / sqrt(D)``.
        dropout: probability with which a weight is dropped; the caller decides whether this is training.
        backend: ``"auto"``, or one of `BACKENDS`: ``"reference"`` (the definition, dense), ``"sdpa"`` (PyTorch's dense
            attention), ``"gathered"`` (dense attention to the keys that a few queries need, as in decoding),
            ``"blockwise"`` (only the allowed pairs, in plain PyTorch), ``"flex"`` (compiled FlexAttention). A backend
            that is named runs or raises; ``"auto"`` logs its choice once per mask and reason.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sink_logits: ``[H]``, a learned score that takes weight and has no value (gpt-oss).
        features: for an adaptive mask, the features of each of its weightings, in order; the module of a weighting
            computes them from hidden states.
        summaries: for a mask that selects blocks and a single query, the summaries of the completed blocks
            ``[B, G, blocks, s]``, if a cache keeps them; otherwise they are computed from the keys.

    Returns:
        ``[B, H, N, Dv]``.

    Raises:
        ValueError: the shapes do not fit, the backend is unknown or cannot compute this, or the spec has an error.
    """
    _check_shapes(query, key, value)
    _check_options(query.shape[1], scale, dropout, softcap, sink_logits)
    check_backend(backend)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options: dict[str, Any] = {"dropout": dropout, "softcap": softcap, "sink_logits": sink_logits, "scale": scale}
    described = _as_documents(documents, query.shape[0], query.shape[2], key.shape[2], query.device)
    if torch.compiler.is_compiling():
        # Features of a mask that takes none are refused outside.
        name = None if described.scattered or features else _name_of(mask)
        if name is not None:
            return compiled.attend(query, key, value, name, described.encode(), backend=backend, **options)
        return _outside((query, key, value), mask, described, (features, summaries), backend, options)
    inputs = Inputs(query, key, value, parse_mask(mask), described, Options(**options), features, summaries)
    return run(inputs, backend)


@torch.compiler.disable(
    reason="adaptive masks, and keys whose positions have gaps, are computed outside the graph; leave fullgraph=True "
    "out"
)
def _outside(
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: MaskExpression | str,
    documents: Documents,
    adaptive: tuple[Sequence[Features], Tensor | None],
    backend: str,
    options: dict[str, Any],
) -> Tensor:
    return run(Inputs(*tensors, parse_mask(mask), documents, Options(**options), *adaptive), backend)


@torch.compiler.assume_constant_result
def _name_of(mask: MaskExpression | str) -> str | None:
    return operators.name_of(parse_mask(mask))


def _as_documents(
    documents: Tensor | Documents | None, batch: int, n_queries: int, n_keys: int, device: torch.device
) -> Documents:
    if documents is None:
        return Documents.single(n_queries, n_keys, device)
    if isinstance(documents, Documents):
        shapes = documents.query_positions.shape[1], documents.key_positions.shape[1]
        if shapes != (n_queries, n_keys):
            raise ValueError(f"documents describe (queries, keys) {shapes}, got {(n_queries, n_keys)}")
        if {documents.query_positions.shape[0], documents.key_positions.shape[0]} not in ({1}, {batch}):
            raise ValueError(f"documents must have 1 or {batch} rows, got {list(documents.query_positions.shape)}")
        return documents
    if documents.shape != (batch, n_keys) or documents.is_floating_point() or documents.dtype == torch.bool:
        got = f"{documents.dtype} of shape {list(documents.shape)}"
        raise ValueError(f"documents must be integers of shape [{batch}, {n_keys}] (batch, keys), got {got}")
    return Documents.from_ids(renumbered(documents.to(device)), torch.arange(n_keys - n_queries, n_keys, device=device))


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    wrong = None
    if not query.ndim == key.ndim == value.ndim == 4:
        wrong = "expected [batch, heads, length, head size]"
    elif key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        wrong = "batch, key heads, key length and head size must agree"
    elif query.shape[1] % key.shape[1]:
        wrong = "the number of query heads must be a multiple of the number of key heads"
    elif query.shape[2] > key.shape[2]:
        wrong = "there may not be more queries than keys"
    if wrong is not None:
        raise ValueError(f"{wrong}; got query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}")


def _check_options(
    n_heads: int, scale: float | None, dropout: float, softcap: float | None, sink_logits: Tensor | None
) -> None:
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}; leave it out for 1 / sqrt(head size)")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be a finite number above 0, got {softcap}; leave it out for scores as they are")
    if sink_logits is not None and sink_logits.shape != (n_heads,):
        raise ValueError(f"sink_logits must have shape [{n_heads}] (query heads), got {list(sink_logits.shape)}")
