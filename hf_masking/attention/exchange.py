"""The exchange of keys and values between the ranks that hold shards of one sequence.

The forward pass gathers the rows that other ranks need and sends them in one `all_to_all_single`; the backward pass
sends the gradients of the received rows back the same way, and adds them up. Both work over gloo and NCCL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..masks import MaskExpression
from ..plan import Documents
from ..plan.shards import Shards, Transfers, needed_columns
from ..spec import parse_mask


def exchange(key: Tensor, value: Tensor, transfers: Transfers, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return the keys ``[B, G, M, D]`` and the values ``[B, G, M, Dv]`` that this rank holds after the exchange.

    Every rank of the group must call this in the same order, and so must their backward passes.

    Parameters:
        key, value: those of the rank's own shard ``[B, G, N, D]``, ``[B, G, N, Dv]``.
    """
    held: tuple[Tensor, Tensor] = _Exchange.apply(key, value, transfers, group)
    return held


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, transfers: Transfers, group: ProcessGroup) -> tuple[Tensor, ...]:
        ctx.transfers, ctx.group = transfers, group
        columns = transfers.sent.to(key.device)  # a model's layers may be on several devices
        sent = _stacked(key.index_select(2, columns), value.index_select(2, columns))
        received = _all_to_all(sent, transfers.sent_to, transfers.received_from, group)
        before, after = (x.permute(1, 2, 0, 3) for x in received.tensor_split([transfers.own.start]))
        sizes = [key.shape[-1], value.shape[-1]]
        parts = zip(before.split(sizes, -1), (key, value), after.split(sizes, -1), strict=True)
        return tuple(torch.cat(part, dim=2) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        transfers: Transfers = ctx.transfers
        own, columns = transfers.own, transfers.sent.to(gradients[0].device)
        received = _stacked(*(torch.cat([x[:, :, : own.start], x[:, :, own.stop :]], dim=2) for x in gradients))
        returned = _all_to_all(received, transfers.received_from, transfers.sent_to, ctx.group).permute(1, 2, 0, 3)
        summed = []
        for mine, theirs in zip(gradients, returned.split([x.shape[-1] for x in gradients], -1), strict=True):
            summed.append(mine[:, :, own].clone().index_add_(2, columns, theirs))
        return *summed, None, None


def _stacked(key: Tensor, value: Tensor) -> Tensor:
    """Return rows of keys and values side by side, column by column: ``[S, B, G, D + Dv]``."""
    return torch.cat([key, value], dim=-1).permute(2, 0, 1, 3).contiguous()


def _all_to_all(rows: Tensor, to: tuple[int, ...], from_: tuple[int, ...], group: ProcessGroup) -> Tensor:
    received = rows.new_empty(sum(from_), *rows.shape[1:])
    dist.all_to_all_single(received, rows, list(from_), list(to), group=group)
    return received


@dataclass(frozen=True)
class ExchangedBytes:
    """The bytes that each rank sends to other ranks in the forward pass of one layer, and receives.

    The backward pass sends as many bytes the other way.

    all_gather: what each rank would receive if all keys and values went to all ranks.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]
    all_gather: tuple[int, ...]


def exchanged_bytes(
    mask: MaskExpression | str,
    length: int,
    ranks: int,
    *,
    key_heads: int,
    head_size: int,
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 1,
) -> ExchangedBytes:
    """Return the bytes that sequence parallelism sends under a mask, for one layer, from the mask alone.

    Parameters:
        mask: a static mask or its spec; one that needs marks counts as without them.
        length: tokens of a context, one document; each rank holds a shard of it.
        ranks: processes that share a context.
        key_heads: key/value heads G; query heads are not exchanged.
        head_size: numbers in a key, and in a value.
        rows: contexts in a batch.

    Raises:
        ValueError: the spec has an error, the mask is adaptive, or there are more ranks than tokens.
    """
    mask = parse_mask(mask)
    if mask.is_adaptive:
        raise ValueError(f"'{mask}' is adaptive: which keys it needs depends on hidden states; use a static mask")
    shards = Shards.even(length, ranks)
    needed = needed_columns(mask.unmarked, Documents.single(length, length), shards)
    of_key = rows * key_heads * 2 * head_size * dtype.itemsize
    transfers = [Transfers.of_rank(needed, shards, rank) for rank in range(ranks)]
    return ExchangedBytes(
        tuple(len(one.sent) * of_key for one in transfers),
        tuple(sum(one.received_from) * of_key for one in transfers),
        tuple((length - size) * of_key for size in shards.sizes),
    )
