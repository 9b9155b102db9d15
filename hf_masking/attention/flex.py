"""Compiled FlexAttention (Dong et al., https://arxiv.org/abs/2412.05496): the backend for CUDA.

The block mask comes from the intervals of the mask, never from all pairs. FlexAttention that is not compiled, or that
was compiled too often, silently runs a dense version, so everything here is compiled with ``fullgraph=True``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..masks import MaskExpression, Tile
from ..masks.mask_mod import as_graph
from ..plan import Documents
from ..plan.memory import remember
from ..plan.tiles import tiles_of_batch
from .inputs import Inputs

_BLOCK = 128


def attend(inputs: Inputs) -> Tensor:
    """Attend by FlexAttention, compiled for the mask."""
    query, key, value = inputs.tensors
    block_mask = _block_mask(inputs.mask, inputs.documents, query.shape[1], query.device)
    if query.device.type == "cpu":
        # Its CPU kernel refuses tensors that could need a gradient, also where none is recorded.
        query, key, value = query.detach(), key.detach(), value.detach()
    shape_class = _shape_class(query, key, value)
    run = _compiled(inputs.mask, inputs.options.softcap, query.device.type == "cuda", shape_class)
    return run(query, key, value, block_mask, inputs.options.scale, inputs.group > 1)


def limit(inputs: Inputs) -> str | None:
    """Return why FlexAttention cannot compute these inputs, for other reasons than their options; None if it can."""
    query, value = inputs.query, inputs.value
    if inputs.mask.needs:
        return "the mask differs from row to row"
    if query.dtype == torch.float64:
        return "it does not compute in float64"
    if query.device.type == "cpu" and inputs.needs_gradients:
        return "it has no backward pass on a CPU"
    if query.device.type not in ("cpu", "cuda"):
        return f"it does not run on {query.device.type}"
    if min(query.shape[-1], value.shape[-1]) < 16:
        return f"head sizes must be at least 16, got {query.shape[-1]} and {value.shape[-1]}"
    return None


def _shape_class(query: Tensor, key: Tensor, value: Tensor) -> tuple[Any, ...]:
    """Return what a kernel is compiled for: on CUDA any batch and length, on a CPU, where that fails, these shapes."""
    if query.device.type == "cuda":
        return query.dtype, query.shape[1], key.shape[1], query.shape[-1], value.shape[-1]
    return query.dtype, query.shape, key.shape, value.shape


@functools.lru_cache(maxsize=64)
def _compiled(
    mask: MaskExpression, softcap: float | None, dynamic: bool, shape_class: tuple[Any, ...]
) -> Callable[..., Tensor]:
    """Return FlexAttention compiled for one mask and one class of shapes."""

    def bend(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    def run(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, scale: float, grouped: bool) -> Tensor:
        result: Any = flex_attention(
            query,
            key,
            value,
            score_mod=None if softcap is None else bend,
            block_mask=block_mask,
            scale=scale,
            enable_gqa=grouped,
        )
        return result

    # The compiler counts recompilations by code object and gives up after 8, so each mask has its own.
    run.__code__ = run.__code__.replace(co_name=f"run_{hash((mask, softcap, shape_class)) & 0xFFFFFFFF:x}")
    return torch.compile(run, fullgraph=True, dynamic=dynamic)


@remember(2**26, lambda block_mask: sum(x.nbytes for x in block_mask.as_tuple() if isinstance(x, Tensor)))
def _block_mask(mask: MaskExpression, documents: Documents, n_heads: int, device: torch.device) -> BlockMask:
    with torch.inference_mode(False):  # a result that is remembered must serve a training step, too
        return _make_block_mask(mask, documents, n_heads, device)


def _make_block_mask(mask: MaskExpression, documents: Documents, n_heads: int, device: torch.device) -> BlockMask:
    tiles = torch.stack([tiles_of_batch(member, documents, _BLOCK) for member in mask.heads], dim=1).to(device)
    if len(mask.heads) > 1:
        tiles = tiles.repeat_interleave(n_heads // len(mask.heads), dim=1)
    counts, indices = _lists(tiles == Tile.SOME)
    full_counts, full_indices = _lists(tiles == Tile.ALL)
    lengths = documents.query_positions.shape[1], documents.key_positions.shape[1]
    allowed = _token_mask(mask, documents, n_heads)
    return BlockMask.from_kv_blocks(
        counts, indices, full_counts, full_indices, BLOCK_SIZE=_BLOCK, mask_mod=allowed, seq_lengths=lengths
    )


def _lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many key blocks each query block has, and all key blocks in an order that begins with these."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1).to(torch.int32), order.to(torch.int32)


def _token_mask(mask: MaskExpression, documents: Documents, n_heads: int) -> Callable[..., Tensor]:
    members = [as_graph(member, documents.key_ids.device) for member in mask.heads]
    size = n_heads // len(members)
    query_positions, query_ids = documents.query_positions, documents.query_ids
    key_positions, key_ids = documents.key_positions, documents.key_ids
    alike = documents.alike

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = batch * 0 if alike else batch
        q, k = query_positions[row, query], key_positions[row, key]
        inside = (query_ids[row, query] == key_ids[row, key]) & (q >= 0) & (k >= 0)
        if len(members) == 1:
            return inside & members[0](q, k)
        chosen = [(head // size == index) & member(q, k) for index, member in enumerate(members)]
        return inside & functools.reduce(torch.logical_or, chosen)

    return allowed
