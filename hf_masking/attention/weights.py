"""What a mask that looks at the content lets every query see, pair by pair: the definition, dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adaptive import Features, TopBlocks
from ..masks import MaskExpression
from ..plan import Documents
from ..plan.selected import require_all_keys


def log_weights(
    mask: MaskExpression, documents: Documents, query: Tensor, key: Tensor, features: Sequence[Features]
) -> Tensor:
    """The logarithm of each pair's weight ``[B, Hq, Q, K]``, -inf for what is excluded; differentiable.

    Parameters:
        mask: one that looks at the content.
        query, key: as in `masked_attention`; what is chosen by score is chosen by them.
        features: those of each of its leaves, in order.
    """
    graded = mask.normal_form()
    assert graded.domain is not None
    group = query.shape[1] // key.shape[1]
    positions = documents.query_positions[:, None, :, None], documents.key_positions[:, None, None, :]
    distance = positions[0] - positions[1]
    weights = query.new_zeros(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    for leaf, read in zip(graded.leaves, features, strict=True):
        if leaf.selects:
            chosen = chosen_pairs(leaf, documents, query, key)
            weights = weights.masked_fill(~chosen.repeat_interleave(group, dim=1), -torch.inf)
        else:
            keys = None if read.key is None else read.key.repeat_interleave(group, dim=1)
            weights = weights + leaf.log_weight(read.query, keys, distance, read.hard).to(weights.dtype)
    weights = weights.masked_fill(~documents.allows(graded.domain)[:, None], -torch.inf)
    if graded.full is None:
        return weights
    return weights.masked_fill(documents.allows(graded.full)[:, None], 0.0)


def checked(features: Sequence[Features], mask: MaskExpression, query: Tensor, key: Tensor) -> tuple[Features, ...]:
    """The features of all leaves of a mask, for each query head and each key.

    Parameters:
        features: of the leaves that learn; of all leaves is fine, too.

    Raises:
        ValueError: there are not as many, or they are for other heads or tokens.
    """
    leaves = mask.leaves
    learning = [leaf for leaf in leaves if leaf.learns]
    if len(features) == len(learning) != len(leaves):
        given = iter(features)
        features = [next(given) if leaf.learns else Features() for leaf in leaves]
    if len(features) != len(leaves):
        raise ValueError(
            f"'{mask}' needs features= of {' and '.join(map(str, learning))}, got {len(features)}; patch_model(model, "
            "mask) makes them of the hidden states"
        )
    for leaf, read in zip(leaves, features, strict=True):
        for name, tensor, like in (("query", read.query, query), ("key", read.key, key)):
            if tensor is not None and not _fits(tensor, like, {0, 2} if name == "query" else {0}):
                raise ValueError(
                    f"the {name} features of '{leaf}' must have shape {[*like.shape[:3], 'size']}, got "
                    f"{list(tensor.shape)}"
                )
    return tuple(features)


def _fits(tensor: Tensor, like: Tensor, may_be_one: set[int]) -> bool:
    sizes = zip(tensor.shape[:3], like.shape[:3], strict=True)
    return tensor.ndim == 4 and all(
        size == wanted or (size == 1 and axis in may_be_one) for axis, (size, wanted) in enumerate(sizes)
    )


def chosen_pairs(leaf: TopBlocks, documents: Documents, query: Tensor, key: Tensor) -> Tensor:
    """Which keys each query and key head has chosen, ``[B, Hkv, Q, K]``; its own block is one of them."""
    batch, key_heads = key.shape[:2]
    chosen = torch.zeros(batch, key_heads, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
    queries = query.detach().unflatten(1, (key_heads, -1))
    for segment in documents.segments:
        require_all_keys(leaf, segment.lengths)
        q, k = (torch.arange(n, device=key.device) for n in (segment.lengths.queries, segment.lengths.keys))
        q, k = q + segment.lengths.first_query, k + segment.lengths.first_key
        for row in documents.rows_of(segment, batch):
            summaries = leaf.summaries(key[row].detach()[:, segment.keys])
            blocks = leaf.choose(queries[row][:, :, segment.queries], summaries, q)
            pairs = (blocks[..., None] == k // leaf.block).any(-2) | (q[:, None] // leaf.block == k // leaf.block)
            rows, columns = _indices(segment.queries, query), _indices(segment.keys, key)
            chosen[row][:, rows[:, None], columns] = pairs
    return chosen


def _indices(columns: slice | Tensor, of: Tensor) -> Tensor:
    return torch.arange(of.shape[2])[columns].to(of.device)
