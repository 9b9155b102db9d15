"""Attention that computes only what the mask allows, in plain PyTorch, forward and backward.

Each part of a plan gives values and a log-sum-exp; the results are merged by their log-sum-exps, and the backward of
each part is that of FlashAttention (Dao et al., https://arxiv.org/abs/2205.14135) with the final output and the final
log-sum-exp. Nothing of queries x keys is ever kept: O(N) memory, and a fixed workspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..masks import Mask
from ..plan import Blocks, Diagonals, Documents, Plan, Segment, plan_of
from . import block_kernel, diagonal_kernel, gathered
from .operands import LOG2E, Backward, Forward, Scoring, Scratch

_KERNELS: dict[type, ModuleType] = {Blocks: block_kernel, Diagonals: diagonal_kernel}


@dataclass(frozen=True)
class _Task:
    """One document of one row under the plan of some of the query heads."""

    row: int
    segment: Segment
    plan: Plan
    heads: slice


@torch.compiler.disable
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    documents: Documents,
    *,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Shapes as in `masked_attention`. Half precision is computed in float32. Deterministic, given the random seed.

    Raises:
        ValueError: a second derivative is asked for.
    """
    if query.shape[2] == 1 or documents.scattered:
        options: dict[str, Any] = {"dropout": dropout, "softcap": softcap, "sink_logits": sink_logits}
        return gathered.attend(query, key, value, mask, documents, scale=scale, **options)
    tasks = list(_tasks(mask, documents, query.shape[0], query.shape[1]))
    seed = int(torch.randint(2**62, ()).item()) if dropout else 0
    scoring = Scoring(scale, softcap, dropout, seed)
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    # Views are made with the strides of the inputs, and the fused kernel takes the last one for 1 without asking.
    inputs = [
        x if x.stride(-1) == 1 else x.contiguous() for x in (query.to(precise), key.to(precise), value.to(precise))
    ]
    sinks = None if sink_logits is None else sink_logits.to(precise)
    # Autocast would turn single products back into half precision.
    with torch.autocast(query.device.type, enabled=False):
        output: Tensor = _Blockwise.apply(*inputs, sinks, tasks, scoring)
    return output.to(query.dtype)


def _tasks(mask: Mask, documents: Documents, batch: int, n_heads: int) -> Iterator[_Task]:
    members = mask.heads
    size = n_heads // len(members)
    for segment in documents.segments:
        for row in range(batch) if documents.alike else (segment.row,):
            for index, member in enumerate(members):
                heads = slice(index * size, (index + 1) * size)
                yield _Task(row, segment, plan_of(segment.bind(member), segment.lengths), heads)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sink_logits: Tensor | None,
        tasks: list[_Task],
        scoring: Scoring,
    ) -> Tensor:
        batch, heads, n_queries, _ = query.shape
        out = query.new_zeros(batch, heads, n_queries, value.shape[-1])
        lse = query.new_full((batch, heads, n_queries, 1), -torch.inf)
        generator, scratch = scoring.generator(query.device), Scratch(query)
        for task in tasks:
            columns = task.segment.queries
            x = Forward(
                query=query[task.row, task.heads][:, columns],
                key=key[task.row][:, task.segment.keys],
                value=value[task.row][:, task.segment.keys],
                out=out[task.row, task.heads][:, columns],
                lse=lse[task.row, task.heads][:, columns],
                first_head=task.heads.start,
                group=heads // key.shape[1],
                scratch=scratch,
            )
            for index, part in enumerate(task.plan.parts):
                _KERNELS[type(part)].forward(part, x, scoring, generator, fresh=index == 0)
            if not isinstance(columns, slice):
                out[task.row, task.heads, columns], lse[task.row, task.heads, columns] = x.out, x.lse
        if sink_logits is not None:
            _add_sinks(out, lse, sink_logits)
        ctx.save_for_backward(query, key, value, sink_logits, out, lse)
        ctx.tasks, ctx.scoring = tasks, scoring
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ValueError(
                "backend 'blockwise' has no second derivative; call backward without create_graph=True, "
                "or use backend='reference'"
            )
        saved = ctx.saved_tensors
        with torch.autocast(saved[0].device.type, enabled=False):
            return (*_gradients(grad_outputs[0], saved, ctx.tasks, ctx.scoring), None, None)


def _gradients(
    grad_out: Tensor, saved: tuple[Tensor, ...], tasks: list[_Task], scoring: Scoring
) -> tuple[Tensor | None, ...]:
    """The gradients of query, key, value and sink logits."""
    query, key, value, sink_logits, out, lse = saved
    delta = torch.linalg.vecdot(grad_out, out)[..., None]
    # Where a row sees nothing its log-sum-exp is -inf, and -inf - -inf is not a number; -inf - inf is -inf.
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
    generator, scratch = scoring.generator(query.device), Scratch(query)
    for task in tasks:
        columns, keys = task.segment.queries, task.segment.keys
        x = Backward(
            query=query[task.row, task.heads][:, columns],
            key=key[task.row][:, keys],
            value=value[task.row][:, keys],
            out=out[task.row, task.heads][:, columns],
            lse=lse[task.row, task.heads][:, columns],
            first_head=task.heads.start,
            group=query.shape[1] // key.shape[1],
            scratch=scratch,
            grad_out=grad_out[task.row, task.heads][:, columns],
            delta=delta[task.row, task.heads][:, columns],
            grad_query=grad_query[task.row, task.heads][:, columns],
            grad_key=grad_key[task.row][:, keys],
            grad_value=grad_value[task.row][:, keys],
        )
        for part in task.plan.parts:
            _KERNELS[type(part)].backward(part, x, scoring, generator)
        if not isinstance(columns, slice):
            grad_query[task.row, task.heads, columns] = x.grad_query
        if not isinstance(keys, slice):
            grad_key[task.row, :, keys], grad_value[task.row, :, keys] = x.grad_key, x.grad_value
    grad_sinks = None if sink_logits is None else -((sink_logits[:, None, None] * LOG2E - lse).exp2() * delta)
    return grad_query, grad_key, grad_value, None if grad_sinks is None else grad_sinks.sum((0, 2, 3))


def _add_sinks(out: Tensor, lse: Tensor, sink_logits: Tensor) -> None:
    """A learned column that takes weight and gives no value, in place."""
    merged = torch.logaddexp2(lse, sink_logits[:, None, None] * LOG2E)
    out.mul_((lse - merged.clamp(min=torch.finfo(merged.dtype).min)).exp2_())
    lse.copy_(merged)
