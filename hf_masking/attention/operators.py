"""Operators that a compiled graph calls and the compiler does not look into.

An operator takes tensors, numbers and strings: so these take a mask by its name and documents as one tensor
(`Documents.encode`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..masks import MaskExpression
from ..plan import Documents
from . import blockwise
from .dispatch import run
from .inputs import Inputs, Options, check_heads
from .tasks import tasks_of

# A plan waits for the device, which a CUDA graph cannot record. The tag is younger than torch 2.8.
_PLANS = [getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name)]

MASKS: dict[str, MaskExpression] = {}  # by their names, see `name_of`


class _Last(NamedTuple):
    """The documents of the last call, and the tensor that they were made of."""

    rows: Tensor
    n_keys: int
    documents: Documents


_last: list[_Last] = []


def name_of(mask: MaskExpression) -> str | None:
    """Return the name by which the operators know a mask; None for an adaptive one, which they do not compute."""
    if mask.is_adaptive:
        return None
    name, count = str(mask), 1
    while MASKS.setdefault(name, mask) != mask:
        count += 1
        name = f"{mask} ({count})"
    return name


def documents_of(rows: Tensor, n_keys: int) -> Documents:
    """Return the documents; the same object for all layers of a forward, so that its segments are found once."""
    for last in _last[:1]:
        if last.n_keys == n_keys and last.rows.device == rows.device and torch.equal(last.rows, rows):
            return last.documents
    with torch.inference_mode(False):  # a result that is remembered must serve a training step, too
        rows = rows.clone()  # a graph reuses the memory of its tensors
        last = _Last(rows, n_keys, Documents.decode(rows, n_keys))
    _last[:] = [last]
    return last.documents


@torch.library.custom_op("hf_masking::allowed", mutates_args=())
def allowed(documents: Tensor, n_heads: int, n_keys: int, mask: str) -> Tensor:
    """Return the pairs that a mask allows ``[B or 1, heads of the mask, N, M]``."""
    check_heads(MASKS[mask], n_heads)
    described = Documents.decode(documents, n_keys)
    return torch.stack([described.allows(member) for member in MASKS[mask].heads], dim=1)


@allowed.register_fake
def _(documents: Tensor, n_heads: int, n_keys: int, mask: str) -> Tensor:
    check_heads(MASKS[mask], n_heads)
    rows, _, tokens = documents.shape
    return documents.new_empty(rows, len(MASKS[mask].heads), tokens - n_keys, n_keys, dtype=torch.bool)


@torch.library.custom_op("hf_masking::attend", mutates_args=(), tags=_PLANS)
def attend(tensors: Sequence[Tensor | None], mask: str, backend: str, scale: float, softcap: float | None) -> Tensor:
    """Attend by any backend, without gradients and dropout.

    Parameters:
        tensors: query, key, value, sink logits and documents.
    """
    query, key, value, sink_logits, rows = _known(tensors)
    options = Options(scale, softcap=softcap, sink_logits=sink_logits)
    inputs = Inputs(query, key, value, MASKS[mask], documents_of(rows, key.shape[2]), options)
    return run(inputs, backend).to(query.dtype).contiguous()


@attend.register_fake
def _(tensors: Sequence[Tensor | None], *_: Any) -> Tensor:
    query, _key, value, *_others = _known(tensors)
    return query.new_empty(*query.shape[:3], value.shape[-1])


@torch.library.custom_op("hf_masking::blockwise", mutates_args=(), tags=_PLANS)
def attend_blockwise(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor | None,
    documents: Tensor,
    seed: Tensor | None,
    mask: str,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return the output and its log-sum-exp, in the precision of the computation; differentiable.

    Parameters:
        numbers: as `as_numbers` returns them.
    """
    return blockwise.forward(*_blockwise_arguments((query, key, value, sink_logits, documents, seed), mask, numbers))


@attend_blockwise.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    precise = blockwise.precision_of(query)
    return (
        query.new_empty(*query.shape[:3], value.shape[-1], dtype=precise),
        query.new_empty(*query.shape[:3], 1, dtype=precise),
    )


@torch.library.custom_op("hf_masking::blockwise_backward", mutates_args=(), tags=_PLANS)
def _blockwise_backward(
    grad_out: Tensor, out: Tensor, lse: Tensor, tensors: Sequence[Tensor | None], mask: str, numbers: Sequence[float]
) -> list[Tensor]:
    """Return the gradients of query, key, value and, if there are any, sink logits.

    Parameters:
        tensors: those that `attend_blockwise` takes.
    """
    gradients = blockwise.gradients(grad_out, out, lse, *_blockwise_arguments(tensors, mask, numbers))
    pairs = zip(gradients.flat(), tensors[:4], strict=True)
    return [x.to(like.dtype).contiguous() for x, like in pairs if x is not None and like is not None]


@_blockwise_backward.register_fake
def _(grad_out: Tensor, out: Tensor, lse: Tensor, tensors: Sequence[Tensor | None], *_: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors[:4] if x is not None]


def as_numbers(options: Options) -> list[float]:
    """Return scale, dropout and soft cap as an operator takes them; a soft cap of 0 stands for none."""
    return [options.scale, options.dropout, 0.0 if options.softcap is None else options.softcap]


def _known(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Return the same, untyped: the type checker cannot know which of them may be None."""
    return tuple(tensors)


def _blockwise_arguments(
    tensors: Sequence[Tensor | None], mask: str, numbers: Sequence[float]
) -> tuple[blockwise.Tensors, blockwise.Work]:
    query, key, value, sink_logits, rows, seed = _known(tensors)
    scale, dropout, softcap = numbers
    check_heads(MASKS[mask], query.shape[1])
    options = Options(scale, dropout, softcap or None, sink_logits)
    inputs = Inputs(query, key, value, MASKS[mask], documents_of(rows, key.shape[2]), options)
    scoring = blockwise.scoring_of(inputs, 0 if seed is None else int(seed))
    return blockwise.tensors_of(inputs), blockwise.Work(tasks_of(inputs), scoring)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.mask, ctx.numbers = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    gradients = _blockwise_backward(grad_out, out, lse, tensors, ctx.mask, ctx.numbers)
    of_sinks = gradients[3] if len(gradients) > 3 else None
    return (*gradients[:3], of_sinks, *[None] * 4)


attend_blockwise.register_autograd(_backward, setup_context=_save)
