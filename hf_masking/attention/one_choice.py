"""One query that chooses blocks, as in decoding: O(blocks) for the choice, and only the chosen keys are read."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..adaptive import Features
from ..masks import BlockLocal, Causal, Mask, MaskExpression
from ..masks.normal_form import NormalForm
from ..plan import Documents
from .columns import allowed_columns


def can_do(mask: MaskExpression, documents: Documents, query: Tensor, features: Sequence[Features]) -> bool:
    """Whether there is one query a row and nothing but a choice to make, from summaries that a cache has kept."""
    if not mask.is_adaptive or query.shape[2] != 1 or len(features) != 1:
        return False
    return features[0].summaries is not None and bool((documents.query_positions >= 0).all())


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: MaskExpression,
    documents: Documents,
    features: Sequence[Features],
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Shapes as in `masked_attention`."""
    # What is marked was marked in full when it came: a single query that follows sees no more of it.
    graded = mask.unmarked.normal_form()
    (leaf,), summaries = graded.leaves, features[0].summaries
    assert summaries is not None
    batch, key_heads, count = key.shape[:3]
    _, sure, allowed = allowed_columns(_sure(graded, leaf.block), documents, 0, 1)
    sure = torch.arange(count, device=key.device) if sure is None else sure

    positions = documents.query_positions.long()[:, None]
    queries = query.unflatten(1, (key_heads, -1))
    blocks = leaf.choose(queries, summaries, positions)
    # A block that is longer than all that is cached is not complete, so it is not chosen.
    within = torch.arange(min(leaf.block, count), device=key.device)
    chosen = (blocks[..., None] * leaf.block + within).flatten(-3)
    seen = chosen >= 0
    if graded.full is not None or graded.domain != Causal():
        seen = seen & graded.rest.allows(positions, chosen)
    columns = torch.cat([sure.expand(batch, key_heads, -1), _columns_of(documents, chosen.clamp(min=0))], dim=-1)
    of_sure = sure.new_ones(1, dtype=torch.bool) if allowed is None else allowed[:, :, 0]
    seen = torch.cat([of_sure.expand(batch, key_heads, len(sure)), seen], dim=-1)
    output: Tensor = scaled_dot_product_attention(
        query,
        rows_of(key, columns),
        rows_of(value, columns),
        attn_mask=seen.repeat_interleave(queries.shape[2], dim=1)[:, :, None],
        dropout_p=dropout,
        scale=scale,
        enable_gqa=queries.shape[2] > 1,
    )
    return output


@functools.lru_cache(maxsize=64)
def _sure(graded: NormalForm, block: int) -> Mask:
    """What is seen without a choice: a query's own block is one of them."""
    assert graded.domain is not None
    own = BlockLocal(block) & graded.domain
    return own if graded.full is None else graded.full | own


def rows_of(x: Tensor, columns: Tensor) -> Tensor:
    """``x[b, h, columns[b, h]]`` for ``[B, H, K, D]`` and ``[B, H, n]``."""
    size = x.shape[3]
    strides = [stride // size for stride in x.stride()[:3]]
    if x.requires_grad or x.stride() != (*(stride * size for stride in strides), 1):
        return x.gather(2, columns[..., None].expand(-1, -1, -1, size))
    # All rows of the tensor behind a cache's view lie in one line, from which whole rows are taken: `gather` goes
    # through single numbers.
    batch, heads, _ = columns.shape
    starts = (
        torch.arange(batch, device=x.device)[:, None] * strides[0] + torch.arange(heads, device=x.device) * strides[1]
    )
    rows = columns * strides[2] + starts[..., None]
    last = sum((length - 1) * stride for length, stride in zip(x.shape[:3], strides, strict=True))
    line = x.as_strided((last + 1, size), (size, 1))
    return line.index_select(0, rows.flatten()).view(*columns.shape, size)


def _columns_of(documents: Documents, positions: Tensor) -> Tensor:
    """The columns in which the keys of these positions ``[B, H, n]`` stand."""
    key_positions = documents.key_positions.long()
    count = key_positions.shape[1]
    if documents.alike and int(documents.key_positions[0, -1]) == count - 1:
        return positions
    # Padding is put behind everything, where it is overwritten or not asked for.
    behind = torch.where(key_positions < 0, count, key_positions)
    columns = torch.zeros(len(key_positions), count + 1, dtype=torch.long, device=positions.device)
    columns.scatter_(1, behind, torch.arange(count, device=positions.device).expand_as(behind))
    return columns.expand(len(positions), -1).gather(1, positions.flatten(1)).view_as(positions)
