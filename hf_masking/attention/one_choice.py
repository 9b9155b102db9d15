"""One query that chooses blocks, as in decoding: O(blocks) for the choice, and only the chosen keys are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..adaptive import Features
from ..masks import Mask
from ..plan import Documents
from .columns import allowed_columns


def can_do(mask: Mask, documents: Documents, query: Tensor, features: Sequence[Features]) -> bool:
    """Whether there is one query a row and nothing but a choice to make, from summaries that a cache has kept."""
    if not mask.is_adaptive or query.shape[2] != 1 or len(features) != 1:
        return False
    return features[0].summaries is not None and bool((documents.query_positions >= 0).all())


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    documents: Documents,
    features: Sequence[Features],
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Shapes as in `masked_attention`."""
    # What is marked was marked in full when it came: a single query that follows sees no more of it.
    graded = mask.bind(()).graded()
    (leaf,), summaries = graded.leaves, features[0].summaries
    assert summaries is not None
    assert graded.domain is not None
    own = leaf.certain(features[0], slice(None)) & graded.domain
    sure = own if graded.full is None else graded.full | own
    _, columns, allowed = allowed_columns(sure, documents, 0, 1)
    columns = torch.arange(key.shape[2], device=key.device) if columns is None else columns
    allowed = torch.ones(1, 1, 1, len(columns), dtype=torch.bool, device=key.device) if allowed is None else allowed

    positions = documents.query_positions.long()[:, None]
    queries = query.unflatten(1, (key.shape[1], -1))
    blocks = leaf.choose(queries, summaries, positions)
    chosen = (blocks[..., None] * leaf.block + torch.arange(leaf.block, device=key.device)).flatten(-3)
    seen = (chosen >= 0) & graded.rest.allows(positions, chosen)
    places = _columns_of(documents, chosen.clamp(min=0))
    keys, values = (
        torch.cat([x.index_select(2, columns), x.gather(2, places[..., None].expand(-1, -1, -1, x.shape[3]))], dim=2)
        for x in (key, value)
    )
    everything = torch.cat([allowed.expand(*seen.shape[:2], -1, -1)[:, :, 0], seen], dim=-1)
    everything = everything.repeat_interleave(queries.shape[2], dim=1)[:, :, None]
    output: Tensor = scaled_dot_product_attention(
        query, keys, values, attn_mask=everything, dropout_p=dropout, scale=scale, enable_gqa=queries.shape[2] > 1
    )
    return output


def _columns_of(documents: Documents, positions: Tensor) -> Tensor:
    """The columns in which the keys of these positions ``[B, H, n]`` stand."""
    key_positions = documents.key_positions.long()
    count = key_positions.shape[1]
    if documents.alike and int(key_positions[0, -1]) == count - 1:
        return positions
    # Padding is put behind everything, where it is overwritten or not asked for.
    behind = torch.where(key_positions < 0, count, key_positions)
    columns = torch.zeros(len(key_positions), count + 1, dtype=torch.long, device=positions.device)
    columns.scatter_(1, behind, torch.arange(count, device=positions.device).expand_as(behind))
    return columns.expand(len(positions), -1).gather(1, positions.flatten(1)).view_as(positions)
