"""The definition of adaptive masks: the weight of every pair, dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adaptive import Features, Selection
from ..masks import MaskExpression
from ..plan import Documents
from ..plan.selected import require_all_keys


def log_weights(
    mask: MaskExpression, documents: Documents, query: Tensor, key: Tensor, features: Sequence[Features]
) -> Tensor:
    """Return the logarithm of each pair's weight ``[B, H, N, M]``, -inf for what is excluded; differentiable.

    Parameters:
        mask: an adaptive one.
        query, key: as in `masked_attention`; a selection picks blocks by them.
        features: of each weighting of the mask, in order.
    """
    form = mask.normal_form()
    assert form.domain is not None
    group = query.shape[1] // key.shape[1]
    q, k = documents.query_positions[:, None, :, None], documents.key_positions[:, None, None, :]
    logs = query.new_zeros(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    for weighting, read in zip(form.weights, features, strict=True):
        keys = None if read.key is None else read.key.repeat_interleave(group, dim=1)
        logs = logs + weighting.log_weight(read.query, keys, q - k, read.hard).to(logs.dtype)
    if form.selection is not None:
        picked = picked_pairs(form.selection, documents, query, key)
        logs = logs.masked_fill(~picked.repeat_interleave(group, dim=1), -torch.inf)
    logs = logs.masked_fill(~documents.allows(form.domain)[:, None], -torch.inf)
    if form.full is None:
        return logs
    return logs.masked_fill(documents.allows(form.full)[:, None], 0.0)


def picked_pairs(selection: Selection, documents: Documents, query: Tensor, key: Tensor) -> Tensor:
    """Return which keys each query and key head sees ``[B, G, N, M]``: the picked blocks and the query's own."""
    batch, key_heads = key.shape[:2]
    picked = torch.zeros(batch, key_heads, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
    queries = query.detach().unflatten(1, (key_heads, -1))
    for segment in documents.segments:
        require_all_keys(selection, segment.lengths)
        q, k = segment.lengths.query_positions(key.device), segment.lengths.key_positions(key.device)
        for row in documents.rows_of(segment, batch):
            summaries = selection.summarize(key[row].detach()[:, segment.keys])
            blocks = selection.choose(queries[row][:, :, segment.queries], summaries, q)
            block_of_key = k // selection.block
            pairs = (blocks[..., None] == block_of_key).any(-2) | (q[:, None] // selection.block == block_of_key)
            rows, columns = _indices(segment.queries, query), _indices(segment.keys, key)
            picked[row][:, rows[:, None], columns] = pairs
    return picked


def _indices(columns: slice | Tensor, of: Tensor) -> Tensor:
    return torch.arange(of.shape[2])[columns].to(of.device)


def checked(features: Sequence[Features], mask: MaskExpression, query: Tensor, key: Tensor) -> tuple[Features, ...]:
    """Return the features of all weightings of a mask.

    Raises:
        ValueError: there are not as many, or they are for other heads or tokens.
    """
    if len(features) != len(mask.weightings):
        raise ValueError(
            f"'{mask}' needs features= of {' and '.join(map(str, mask.weightings)) or 'nothing'}, got {len(features)}; "
            "patch_model(model, mask) computes them from the hidden states"
        )
    for weighting, read in zip(mask.weightings, features, strict=True):
        for name, tensor, like in (("query", read.query, query), ("key", read.key, key)):
            if tensor is not None and not _fits(tensor, like, {0, 2} if name == "query" else {0}):
                raise ValueError(
                    f"the {name} features of '{weighting}' must have shape {[*like.shape[:3], 'size']}, got "
                    f"{list(tensor.shape)}"
                )
    return tuple(features)


def _fits(tensor: Tensor, like: Tensor, may_be_one: set[int]) -> bool:
    sizes = zip(tensor.shape[:3], like.shape[:3], strict=True)
    return tensor.ndim == 4 and all(
        size == wanted or (size == 1 and axis in may_be_one) for axis, (size, wanted) in enumerate(sizes)
    )
