"""Operators that a compiled graph calls and the compiler does not look into.

They take a mask by its name and documents as one tensor (`Documents.encode`), since an operator takes tensors, numbers
and strings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..masks import Mask
from ..plan import Documents
from . import blockwise
from .backends import check_heads, run
from .operands import Scoring

# A plan waits for the device, which a CUDA graph cannot record. The tag is younger than torch 2.8.
_PLANS = [getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name)]

MASKS: dict[str, Mask] = {}  # by the names that `name_of` gives


class _Last(NamedTuple):
    """The documents of the last call, and what they were made of."""

    rows: Tensor
    n_keys: int
    documents: Documents


_last: list[_Last] = []


def name_of(mask: Mask) -> str | None:
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
    with torch.inference_mode(False):  # what is kept must serve a training step, too
        rows = rows.clone()  # a graph uses the memory of its tensors again
        last = _Last(rows, n_keys, Documents.decode(rows, n_keys))
    _last[:] = [last]
    return last.documents


@torch.library.custom_op("hf_masking::allowed", mutates_args=())
def allowed(documents: Tensor, n_heads: int, n_keys: int, mask: str) -> Tensor:
    """Return the pairs that a mask allows ``[B or 1, M, Q, K]``, for its M groups of query heads."""
    check_heads(MASKS[mask], n_heads)
    described = Documents.decode(documents, n_keys)
    return torch.stack([described.allows(member) for member in MASKS[mask].heads], dim=1)


@allowed.register_fake
def _(documents: Tensor, n_heads: int, n_keys: int, mask: str) -> Tensor:
    check_heads(MASKS[mask], n_heads)
    rows, _, tokens = documents.shape
    return documents.new_empty(rows, len(MASKS[mask].heads), tokens - n_keys, n_keys, dtype=torch.bool)


@torch.library.custom_op("hf_masking::attend", mutates_args=(), tags=_PLANS)
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor | None,
    documents: Tensor,
    mask: str,
    backend: str,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Attend by any backend, without gradients and dropout."""
    options: dict[str, Any] = {"dropout": 0.0, "softcap": softcap, "sink_logits": sink_logits}
    described = documents_of(documents, key.shape[2])
    output = run(query, key, value, MASKS[mask], described, backend=backend, scale=scale, **options)
    return output.to(query.dtype).contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
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
    scale: float,
    dropout: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the output and its log-sum-exp, in the precision of the computation; differentiable."""
    return blockwise.forward(_problem(query, key, value, sink_logits, documents, seed, mask, scale, dropout, softcap))


@attend_blockwise.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    precise = blockwise.precision_of(query)
    return (
        query.new_empty(*query.shape[:3], value.shape[-1], dtype=precise),
        query.new_empty(*query.shape[:3], 1, dtype=precise),
    )


@torch.library.custom_op("hf_masking::blockwise_backward", mutates_args=(), tags=_PLANS)
def _blockwise_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor | None,
    documents: Tensor,
    seed: Tensor | None,
    mask: str,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> list[Tensor]:
    """The gradients of query, key, value and, if there are any, sink logits."""
    problem = _problem(query, key, value, sink_logits, documents, seed, mask, scale, dropout, softcap)
    gradients, _ = blockwise.gradients(grad, problem, out, lse)
    pairs = zip(gradients, (query, key, value, sink_logits), strict=True)
    return [x.to(like.dtype).contiguous() for x, like in pairs if x is not None and like is not None]


@_blockwise_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (query, key, value, sink_logits) if x is not None]


def _problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink_logits: Tensor | None,
    documents: Tensor,
    seed: Tensor | None,
    mask: str,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> blockwise.Problem:
    check_heads(MASKS[mask], query.shape[1])
    described = documents_of(documents, key.shape[2])
    tasks = list(blockwise.tasks_of(MASKS[mask], described, query.shape[0], query.shape[1]))
    scoring = Scoring(scale, softcap, dropout, 0 if seed is None else int(seed))
    return blockwise.precisely(query, key, value, sink_logits, tasks, scoring)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.mask, ctx.scale, ctx.dropout, ctx.softcap = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _blockwise_backward(grad, *ctx.saved_tensors, ctx.mask, ctx.scale, ctx.dropout, ctx.softcap)
    of_sinks = gradients[3] if len(gradients) > 3 else None
    return (*gradients[:3], of_sinks, *[None] * 6)


attend_blockwise.register_autograd(_backward, setup_context=_keep)
