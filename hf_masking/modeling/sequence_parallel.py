"""Sequence parallelism: the ranks of a process group hold shards of one sequence, and exchange the keys they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from ..plan.shards import Shards
from . import running
from .base_model.architecture import pretrained
from .forward.marks import Needs
from .forward.whole_arguments import refuse_model
from .patching.record import layer_masks
from .sharding import gather_columns

_IGNORED = -100
_UNPATCHED = (
    "no patched model ran on the shards of a sequence, and another one attends within its own shard only; "
    "patch_model(model, 'causal') first"
)


@contextmanager
def sequence_parallel(group: ProcessGroup | None = None) -> Iterator[None]:
    """Run patched models on this process's shard of a sequence, for the length of a with block.

    Every process of the group passes its shard of the columns of one batch, in the order of the ranks; shards may have
    different lengths. In each layer a rank is sent the keys that its queries may attend to and no others: which these
    are follows from the mask. The logits are those of the shard, equal to those of the whole sequence in one process.

    Arguments per token (``attention_mask``, ``position_ids``, ``document_ids``, ``span_ids``, ``prompt_mask``) are the
    shard's, too; ``prefix_lengths`` and ``prompt_lengths`` are those of the whole rows. Documents may cross from one
    rank to the next. The backward pass may run after the block, and must run in every process; the gradient of a
    parameter is then the sum over the processes of what each of them has.

    ::

        shard = shard_batch({"input_ids": ids, "labels": ids}, group)
        labels = shard.pop("shift_labels")
        with sequence_parallel(group):
            logits = model(**shard).logits

    Parameters:
        group: a process group of `torch.distributed`, over gloo or NCCL; by default all processes.

    Raises:
        ValueError: there is no process group, this process is not in it, no patched model ran inside the block, or a
            model or an argument has no meaning for a shard, such as an adaptive mask or a cache.
    """
    with running.in_sequence(_checked(group)) as sequence:
        yield
    if not sequence.forwards:
        raise ValueError(_UNPATCHED)


def check_shards(model: nn.Module) -> None:
    """Raise a ValueError if a model cannot run on shards: it has no mask, or not only static ones mix its tokens."""
    masks = layer_masks(model)
    if not masks:
        raise ValueError(_UNPATCHED)
    refuse_model(pretrained(model), Needs.of(masks))


def shard_batch(batch: Mapping[str, Any], group: ProcessGroup | None = None) -> dict[str, Any]:
    """Return this rank's shard of a batch: the arguments of a forward inside `sequence_parallel`.

    Tensors per token ``[B, N]`` are cut alike, and others are left alone. ``labels`` become ``shift_labels``: at each
    token the label of the next one, which for the last token of a shard is on the next rank. Their loss, summed over
    the ranks and divided by the number of labels of all ranks, is that of the whole sequence.

    Parameters:
        batch: with ``input_ids`` or ``inputs_embeds``, the same on every rank.
        group: as for `sequence_parallel`.

    Raises:
        ValueError: there are fewer tokens than ranks, or neither ``input_ids`` nor ``inputs_embeds``.
    """
    group = _checked(group)
    given = {name: value for name, value in batch.items() if value is not None}
    inputs = given.get("input_ids", given.get("inputs_embeds"))
    if inputs is None:
        raise ValueError(f"expected input_ids or inputs_embeds in the batch, got {', '.join(batch) or 'nothing'}")
    rows, length = inputs.shape[:2]
    if "labels" in given:
        given["shift_labels"] = F.pad(given.pop("labels"), (0, 1), value=_IGNORED)[:, 1:]
    mine = Shards.even(length, dist.get_world_size(group)).columns(dist.get_rank(group))
    return {name: value[:, mine] if _is_per_token(value, rows, length) else value for name, value in given.items()}


@torch.no_grad()
def losses_in_shards(model: nn.Module, input_ids: Tensor, next_ids: Tensor, group: ProcessGroup) -> Tensor:
    """Return the loss of each next token in nats ``[B, N]``, on every rank; each has computed those of its shard.

    Parameters:
        input_ids, next_ids: ``[B, N]``, the same on every rank.
    """
    shard = shard_batch({"input_ids": input_ids, "shift_labels": next_ids}, group)
    wanted = shard.pop("shift_labels")
    with sequence_parallel(group):
        logits = model(**shard).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
    return gather_columns(losses, Shards.even(input_ids.shape[1], dist.get_world_size(group)).sizes, group)


def _is_per_token(value: Any, rows: int, length: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] in (1, rows) and value.shape[1] == length


def _checked(group: ProcessGroup | None) -> ProcessGroup:
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "sequence parallelism needs several processes and torch.distributed; launch them with torchrun or "
            "accelerate launch, and call torch.distributed.init_process_group first"
        )
    if group is None:
        group = dist.group.WORLD
    if group is None or group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not in the group; pass the group that it is a member of")
    return group
