"""Attention that computes only what the mask allows, in plain PyTorch, forward and backward.

Each part of a plan gives values and a log-sum-exp; the results are merged by their log-sum-exps, and the backward of
each part is that of FlashAttention (Dao et al., https://arxiv.org/abs/2205.14135) with the final output and the final
log-sum-exp. Nothing of queries x keys is ever kept: O(N) memory (O(N k) where each query chooses k blocks), and a fixed
workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adaptive import AdaptiveMask, Features
from ..plan import Blocks, Diagonals, Part, Segment, Selected
from . import block_kernel, content, diagonal_kernel, selected_kernel
from .inputs import Inputs
from .operands import LOG2E, Backward, Forward, Scoring, Scratch, Weighing

_KERNELS: dict[type, ModuleType] = {
    Blocks: block_kernel,
    Diagonals: diagonal_kernel,
    Selected: selected_kernel,
}


@dataclass(frozen=True)
class Task:
    """One document of one row, and the parts that are computed for some of the query heads."""

    row: int
    segment: Segment
    parts: tuple[Part | Selected, ...]
    heads: slice


class Problem(NamedTuple):
    """What is computed, and on what: queries, keys, values and sink logits in one precision."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink_logits: Tensor | None
    tasks: Sequence[Task]
    scoring: Scoring


class _Kind(NamedTuple):
    """A mask that gives weights, and what `Weighing` says of it."""

    leaf: AdaptiveMask
    hard: bool
    constant: bool


# What it has read of queries and keys.
_Read = tuple[_Kind, Tensor, Tensor | None]


def attend(inputs: Inputs) -> Tensor:
    """Attend block by block. Half precision is computed in float32. On a CPU deterministic, given the seed.

    Raises:
        ValueError: a second derivative is asked for.
    """
    query, options = inputs.query, inputs.options
    tasks = list(_adaptive_tasks(inputs) if inputs.mask.is_adaptive else tasks_of(inputs))
    seed = int(torch.randint(2**62, ()).item()) if options.dropout else 0
    problem = precisely(inputs, tasks, seed)
    reads = _reads(inputs, problem.query.dtype)
    # Autocast would turn single products back into half precision.
    with torch.autocast(query.device.type, enabled=False):
        kinds = [kind for kind, *_ in reads]
        tensors = [x for _, *read in reads for x in read]
        output: Tensor = _Blockwise.apply(*problem, kinds, *tensors)
    return output.to(query.dtype)


def precision_of(query: Tensor) -> torch.dtype:
    """Return the precision in which inputs like this are computed."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def precisely(inputs: Inputs, tasks: Sequence[Task], seed: int) -> Problem:
    """Return the inputs as the kernels take them."""
    precise, sinks = precision_of(inputs.query), inputs.options.sink_logits
    # Views are made with the strides of the inputs, and the fused kernel takes the last one for 1 without asking.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in inputs.to(precise).tensors)
    scoring = Scoring(inputs.options.scale, inputs.options.softcap, inputs.options.dropout, seed)
    return Problem(q, k, v, None if sinks is None else sinks.to(precise), tasks, scoring)


def tasks_of(inputs: Inputs) -> Iterator[Task]:
    for document_mask in inputs.document_masks:
        for row in inputs.documents.rows_of(document_mask.segment, len(inputs.query)):
            yield Task(row, document_mask.segment, document_mask.plan.parts, document_mask.heads)


def _adaptive_tasks(inputs: Inputs) -> Iterator[Task]:
    query, key = inputs.query.detach(), inputs.key.detach()
    for segment in inputs.documents.segments:
        for row in inputs.documents.rows_of(segment, len(query)):
            read = tuple(_of_document(one, row, segment) for one in inputs.features)
            document = content.Document(segment, query[row][:, segment.queries], key[row][:, segment.keys], read)
            for heads, parts in content.parts_by_heads(inputs.mask.union, document):
                yield Task(row, segment, parts, heads)


def _of_document(features: Features, row: int, segment: Segment) -> Features:
    query, key = (None if x is None else x[row if len(x) > 1 else 0].detach() for x in features.tensors)
    query = query if query is None or query.shape[1] == 1 else query[:, segment.queries]
    return Features(query, key if key is None else key[:, segment.keys], features.hard)


def _reads(inputs: Inputs, dtype: torch.dtype) -> list[_Read]:
    """What the leaves that give weights have read, for each head and token."""
    mask, features, query = inputs.mask, inputs.features, inputs.query
    reads: list[_Read] = []
    for leaf, read in zip(mask.leaves if mask.is_adaptive else (), features, strict=True):
        if not leaf.selects:
            assert read.query is not None
            of_queries = read.query.to(dtype).expand(*query.shape[:3], -1).contiguous()
            of_keys = None if read.key is None else read.key.to(dtype).expand(len(query), -1, -1, -1).contiguous()
            reads.append((_Kind(leaf, read.hard, read.query.shape[2] == 1), of_queries, of_keys))
    return reads


def forward(
    problem: Problem, kinds: Sequence[_Kind] = (), features: Sequence[Tensor | None] = ()
) -> tuple[Tensor, Tensor]:
    """Return the output and its base-2 log-sum-exp ``[B, Hq, Nq, 1]``."""
    query, key, value, sink_logits, tasks, scoring = problem
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
            weighings=_weighings(task, kinds, features),
        )
        for index, part in enumerate(task.parts):
            _KERNELS[type(part)].forward(part, x, scoring, generator, fresh=index == 0)
        if not isinstance(columns, slice):
            out[task.row, task.heads, columns], lse[task.row, task.heads, columns] = x.out, x.lse
    if sink_logits is not None:
        _add_sinks(out, lse, sink_logits)
    return out, lse


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sink_logits: Tensor | None,
        tasks: Sequence[Task],
        scoring: Scoring,
        kinds: Sequence[_Kind],
        *features: Tensor | None,
    ) -> Tensor:
        out, lse = forward(Problem(query, key, value, sink_logits, tasks, scoring), kinds, features)
        ctx.save_for_backward(query, key, value, sink_logits, out, lse, *features)
        ctx.tasks, ctx.scoring, ctx.kinds = tasks, scoring, kinds
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ValueError(
                "backend 'blockwise' has no second derivative; call backward without create_graph=True, "
                "or use backend='reference'"
            )
        query, key, value, sink_logits, out, lse, *features = ctx.saved_tensors
        problem = Problem(query, key, value, sink_logits, ctx.tasks, ctx.scoring)
        with torch.autocast(query.device.type, enabled=False):
            own, of_features = gradients(grad_outputs[0], problem, out, lse, ctx.kinds, features)
            return (*own, None, None, None, *of_features)


def _weighings(
    task: Task,
    kinds: Sequence[_Kind],
    features: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None] = (),
) -> list[Weighing]:
    """What gives the pairs of a task their weights; with ``gradients`` summed up for the features, one for each."""
    queries, keys = task.segment.queries, task.segment.keys
    weighings = []
    for index, kind in enumerate(kinds):
        tensors = [*features[2 * index : 2 * index + 2], *(gradients[2 * index : 2 * index + 2] or (None, None))]
        of_queries, of_keys = (
            [None if x is None else x[task.row] for x in pair] for pair in (tensors[::2], tensors[1::2])
        )
        query, grad_query = (None if x is None else x[task.heads][:, queries] for x in of_queries)
        key, grad_key = (None if x is None else x[:, keys] for x in of_keys)
        assert query is not None
        weighings.append(Weighing(*kind, query, key, grad_query, grad_key))
    return weighings


def gradients(
    grad_out: Tensor,
    problem: Problem,
    out: Tensor,
    lse: Tensor,
    kinds: Sequence[_Kind] = (),
    features: Sequence[Tensor | None] = (),
) -> tuple[tuple[Tensor | None, ...], list[Tensor | None]]:
    """The gradients of query, key, value and sink logits, and those of the features."""
    query, key, value, sink_logits, tasks, scoring = problem
    if grad_out.stride(-1) != 1 or 0 in grad_out.stride():
        grad_out = grad_out.contiguous()  # of a sum it is one number, of which products would be made one by one
    delta = torch.linalg.vecdot(grad_out, out)[..., None]
    # Where a row sees nothing its log-sum-exp is -inf, and -inf - -inf is not a number; -inf - inf is -inf.
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
    grad_features: list[Tensor | None] = [None if x is None else torch.zeros_like(x) for x in features]
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
            weighings=_weighings(task, kinds, features, grad_features),
            grad_out=grad_out[task.row, task.heads][:, columns],
            delta=delta[task.row, task.heads][:, columns],
            grad_query=grad_query[task.row, task.heads][:, columns],
            grad_key=grad_key[task.row][:, keys],
            grad_value=grad_value[task.row][:, keys],
        )
        for part in task.parts:
            _KERNELS[type(part)].backward(part, x, scoring, generator)
        # Where columns are no slice, these are copies.
        if not isinstance(columns, slice):
            grad_query[task.row, task.heads, columns] = x.grad_query
        if not isinstance(keys, slice):
            grad_key[task.row, :, keys], grad_value[task.row, :, keys] = x.grad_key, x.grad_value
        for weighing, of_queries, of_keys in zip(x.weighings, grad_features[::2], grad_features[1::2], strict=True):
            if of_queries is not None and weighing.grad_query is not None and not isinstance(columns, slice):
                of_queries[task.row, task.heads, columns] = weighing.grad_query
            if of_keys is not None and weighing.grad_key is not None and not isinstance(keys, slice):
                of_keys[task.row, :, keys] = weighing.grad_key
    grad_sinks = None if sink_logits is None else -((sink_logits[:, None, None] * LOG2E - lse).exp2() * delta)
    own: tuple[Tensor | None, ...] = (
        grad_query,
        grad_key,
        grad_value,
        None if grad_sinks is None else grad_sinks.sum((0, 2, 3)),
    )
    return own, grad_features


def _add_sinks(out: Tensor, lse: Tensor, sink_logits: Tensor) -> None:
    """A learned column that takes weight and gives no value, in place."""
    merged = torch.logaddexp2(lse, sink_logits[:, None, None] * LOG2E)
    out.mul_((lse - merged.clamp(min=torch.finfo(merged.dtype).min)).exp2_())
    lse.copy_(merged)
