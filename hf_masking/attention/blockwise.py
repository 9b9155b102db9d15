"""Attention that computes only what the mask allows, in plain PyTorch, forward and backward.

Each part of a plan gives values and a log-sum-exp; the results are merged by their log-sum-exps, and the backward of
each part is that of FlashAttention (Dao et al., https://arxiv.org/abs/2205.14135) with the final output and the final
log-sum-exp. Nothing as large as queries x keys is ever kept: O(N) memory (O(N k) where each query selects k blocks),
and a fixed workspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adaptive import Features
from ..plan import Blocks, Diagonals, Selected
from . import block_kernel, diagonal_kernel, selected_kernel
from .inputs import Inputs
from .kernel_state import LOG2E, BackwardState, Draws, ForwardState, Scoring, Scratch
from .leaves import DocumentLeaf, Leaf, LeafFeatures
from .tasks import Task, tasks_of

_KERNELS: dict[type, ModuleType] = {
    Blocks: block_kernel,
    Diagonals: diagonal_kernel,
    Selected: selected_kernel,
}


class Tensors(NamedTuple):
    """The tensors that are differentiated, in one precision, or their gradients. One `LeafFeatures` per leaf."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink_logits: Tensor | None = None
    features: tuple[LeafFeatures, ...] = ()

    def flat(self) -> list[Tensor | None]:
        """Return them in one list, as autograd takes them."""
        return [*self[:4], *(x for features in self.features for x in features)]

    @classmethod
    def unflat(cls, flat: Sequence[Any]) -> Tensors:
        """Return what `flat` made into a list."""
        query, key, value, sink_logits, *features = flat
        pairs = zip(features[::2], features[1::2], strict=True)
        return cls(query, key, value, sink_logits, tuple(LeafFeatures(*pair) for pair in pairs))


class Work(NamedTuple):
    """The work to do on the tensors. One `Leaf` per `LeafFeatures`."""

    tasks: Sequence[Task]
    scoring: Scoring
    leaves: tuple[Leaf, ...] = ()


def attend(inputs: Inputs) -> Tensor:
    """Attend block by block. Half precision is computed in float32. On a CPU deterministic, given the seed.

    Raises:
        ValueError: a second derivative is asked for.
    """
    seed = int(torch.randint(2**62, ()).item()) if inputs.options.dropout else 0
    tensors, leaves = tensors_of(inputs), _leaves(inputs)
    features = tuple(_precise_features(inputs, one, tensors.query.dtype) for _, one in leaves)
    work = Work(tasks_of(inputs), scoring_of(inputs, seed), tuple(leaf for leaf, _ in leaves))
    # Autocast would turn single products back into half precision.
    with torch.autocast(inputs.query.device.type, enabled=False):
        output: Tensor = _Blockwise.apply(work, *tensors._replace(features=features).flat())
    return output.to(inputs.query.dtype)


def precision_of(query: Tensor) -> torch.dtype:
    """Return the precision in which inputs like this are computed."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def tensors_of(inputs: Inputs) -> Tensors:
    """Return the tensors of a call as the kernels take them, without features."""
    precise, sinks = precision_of(inputs.query), inputs.options.sink_logits
    # Views are made with the strides of the inputs, and the fused kernel takes the last one for 1 without asking.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in inputs.to(precise).tensors)
    return Tensors(query, key, value, None if sinks is None else sinks.to(precise))


def scoring_of(inputs: Inputs, seed: int) -> Scoring:
    """Return how scores become weights."""
    return Scoring(inputs.options.scale, inputs.options.softcap, inputs.options.dropout, seed)


def _leaves(inputs: Inputs) -> list[tuple[Leaf, Features]]:
    """Return the weightings of the mask, and their features."""
    pairs = zip(inputs.mask.weightings, inputs.features, strict=True)
    return [(Leaf(one, features.hard, constant=features.query.shape[2] == 1), features) for one, features in pairs]


def _precise_features(inputs: Inputs, features: Features, dtype: torch.dtype) -> LeafFeatures:
    """Return features for every row, head and query, in the precision of the computation."""
    query = features.query.to(dtype).expand(*inputs.query.shape[:3], -1).contiguous()
    key = features.key
    return LeafFeatures(query, None if key is None else key.to(dtype).expand(len(query), -1, -1, -1).contiguous())


def forward(tensors: Tensors, work: Work) -> tuple[Tensor, Tensor]:
    """Return the output ``[B, H, N, Dv]`` and its base-2 log-sum-exp ``[B, H, N, 1]``."""
    query, key, value, sink_logits, _ = tensors
    out = query.new_zeros(*query.shape[:3], value.shape[-1])
    lse = query.new_full((*query.shape[:3], 1), -torch.inf)
    draws, scratch = Draws(work.scoring, query.device), Scratch(query)
    for task in work.tasks:
        x = ForwardState(
            query=task.queries_of(query),
            key=task.keys_of(key),
            value=task.keys_of(value),
            out=task.queries_of(out),
            lse=task.queries_of(lse),
            first_head=task.heads.start,
            group=query.shape[1] // key.shape[1],
            leaves=_leaves_of(task, tensors, work),
            scoring=work.scoring,
            draws=draws,
            scratch=scratch,
        )
        for index, part in enumerate(task.parts):
            _KERNELS[type(part)].forward(part, x, fresh=index == 0)
        task.write_queries(out, x.out)
        task.write_queries(lse, x.lse)
    if sink_logits is not None:
        _add_sinks(out, lse, sink_logits)
    return out, lse


def gradients(grad_out: Tensor, out: Tensor, lse: Tensor, tensors: Tensors, work: Work) -> Tensors:
    """Return the gradients of the tensors, given the final output and its base-2 log-sum-exp."""
    query, key, value, sink_logits, _ = tensors
    if grad_out.stride(-1) != 1 or 0 in grad_out.stride():
        grad_out = grad_out.contiguous()  # that of a sum is one number, and its products would be made one by one
    delta = torch.linalg.vecdot(grad_out, out)[..., None]
    # The log-sum-exp of a row without keys is -inf, and -inf - -inf is NaN; -inf - inf is -inf.
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    grads = Tensors.unflat([None if x is None else torch.zeros_like(x) for x in tensors.flat()])
    draws, scratch = Draws(work.scoring, query.device), Scratch(query)
    for task in work.tasks:
        x = BackwardState(
            query=task.queries_of(query),
            key=task.keys_of(key),
            value=task.keys_of(value),
            out=task.queries_of(out),
            lse=task.queries_of(lse),
            first_head=task.heads.start,
            group=query.shape[1] // key.shape[1],
            leaves=_leaves_of(task, tensors, work, grads),
            scoring=work.scoring,
            draws=draws,
            scratch=scratch,
            grad_out=task.queries_of(grad_out),
            delta=task.queries_of(delta),
            grad_query=task.queries_of(grads.query),
            grad_key=task.keys_of(grads.key),
            grad_value=task.keys_of(grads.value),
        )
        for part in task.parts:
            _KERNELS[type(part)].backward(part, x)
        _write_gradients(task, x, grads)
    if sink_logits is None:
        return grads
    of_sinks = -((sink_logits[:, None, None] * LOG2E - lse).exp2() * delta)
    return grads._replace(sink_logits=of_sinks.sum((0, 2, 3)))


def _leaves_of(task: Task, tensors: Tensors, work: Work, gradients: Tensors | None = None) -> list[DocumentLeaf]:
    """Return the leaves of a task, with views of its features and of their gradients."""

    def of_task(features: LeafFeatures) -> LeafFeatures:
        key = features.key
        return LeafFeatures(task.queries_of(features.query), None if key is None else task.keys_of(key))

    leaves = [DocumentLeaf(leaf, of_task(one)) for leaf, one in zip(work.leaves, tensors.features, strict=True)]
    for leaf, one in zip(leaves, () if gradients is None else gradients.features, strict=False):
        leaf.gradients = of_task(one)
    return leaves


def _write_gradients(task: Task, x: BackwardState, gradients: Tensors) -> None:
    """Write back the gradients of a task whose tokens are scattered over the row."""
    task.write_queries(gradients.query, x.grad_query)
    task.write_keys(gradients.key, x.grad_key)
    task.write_keys(gradients.value, x.grad_value)
    for leaf, total in zip(x.leaves, gradients.features, strict=True):
        assert leaf.gradients is not None
        task.write_queries(total.query, leaf.gradients.query)
        if total.key is not None and leaf.gradients.key is not None:
            task.write_keys(total.key, leaf.gradients.key)


def _add_sinks(out: Tensor, lse: Tensor, sink_logits: Tensor) -> None:
    """Merge a learned column that takes weight and has no value, in place."""
    merged = torch.logaddexp2(lse, sink_logits[:, None, None] * LOG2E)
    out.mul_((lse - merged.clamp(min=torch.finfo(merged.dtype).min)).exp2_())
    lse.copy_(merged)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Work, *tensors: Tensor | None) -> Tensor:
        out, lse = forward(Tensors.unflat(tensors), work)
        ctx.save_for_backward(out, lse, *tensors)
        ctx.work = work
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ValueError(
                "backend 'blockwise' has no second derivative; call backward without create_graph=True, "
                "or use backend='reference'"
            )
        out, lse, *tensors = ctx.saved_tensors
        with torch.autocast(out.device.type, enabled=False):
            return (None, *gradients(grad_outputs[0], out, lse, Tensors.unflat(tensors), ctx.work).flat())
