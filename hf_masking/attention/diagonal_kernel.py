"""Forward and backward of single distances: elementwise products of rows that stand a distance apart."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..plan.diagonals import Diagonal, Diagonals
from .operands import Backward, Forward, Scoring, merge, normalized

_ELEMENTS = 2**19  # of the queries that are looked at together; fewer would fit the cache better and start more often

Crossing = tuple[slice, slice]  # rows of a chunk that are on a diagonal, counted from its first, and their keys


def forward(part: Diagonals, x: Forward, scoring: Scoring, generator: torch.Generator, *, fresh: bool) -> None:
    """Adds the part to ``x.out`` and ``x.lse``."""
    for heads, key_heads in x.head_groups():
        key, value = x.key[key_heads], x.value[key_heads]
        for rows, crossings in _chunks(part, x.query[heads]):
            scores, _ = _scores(x.query[heads, rows], key, crossings, scoring)
            peak = scores.amax(0).clamp_(min=torch.finfo(scores.dtype).min)
            weights = scores.sub_(peak).exp2_()
            total = weights.sum(0)
            if (keep := scoring.keep(weights, generator)) is not None:
                weights.mul_(keep)
            values = torch.zeros_like(x.out[heads, rows])
            for weight, (mine, keys) in zip(weights, crossings, strict=True):
                values[:, mine].addcmul_(weight[:, mine], value[:, keys])
            merge(x.out[heads, rows], x.lse[heads, rows], *normalized(values, peak, total))


def backward(part: Diagonals, x: Backward, scoring: Scoring, generator: torch.Generator) -> None:
    """Adds the part's share to the gradients of ``x``."""
    for heads, key_heads in x.head_groups():
        key, value = x.key[key_heads], x.value[key_heads]
        grad_key, grad_value = x.grad_key[key_heads], x.grad_value[key_heads]
        for rows, crossings in _chunks(part, x.query[heads]):
            query, grad_out, grad_query = x.query[heads, rows], x.grad_out[heads, rows], x.grad_query[heads, rows]
            weights, slope = _scores(query, key, crossings, scoring)
            weights.sub_(x.lse[heads, rows]).exp2_()
            grad_weights = torch.zeros_like(weights)
            for grad_weight, (mine, keys) in zip(grad_weights, crossings, strict=True):
                torch.linalg.vecdot(grad_out[:, mine], value[:, keys], out=grad_weight[:, mine, 0])
            keep = scoring.keep(weights, generator)
            dropped = weights if keep is None else weights * keep
            if keep is not None:
                grad_weights.mul_(keep)
            grad_scores = grad_weights.sub_(x.delta[heads, rows]).mul_(weights).mul_(scoring.scale)
            if slope is not None:
                grad_scores.mul_(slope)
            for grad_score, weight, (mine, keys) in zip(grad_scores, dropped, crossings, strict=True):
                grad_query[:, mine].addcmul_(grad_score[:, mine], key[:, keys])
                _add(grad_key[:, keys], grad_score[:, mine], query[:, mine])
                _add(grad_value[:, keys], weight[:, mine], grad_out[:, mine])


def _add(total: Tensor, factor: Tensor, rows: Tensor) -> None:
    if total.shape[0] == rows.shape[0]:
        total.addcmul_(factor, rows)
    else:
        total.add_((factor * rows).sum(0, keepdim=True))


def _chunks(part: Diagonals, query: Tensor) -> Iterator[tuple[slice, list[Crossing]]]:
    """A few rows at a time, and the diagonals that they meet."""
    heads, length, size = query.shape
    step = max(1, _ELEMENTS // (heads * size))
    for row in range(0, length, step):
        rows = slice(row, min(row + step, length))
        if crossings := [crossing for diagonal in part.diagonals if (crossing := _crossing(diagonal, rows))]:
            yield rows, crossings


def _crossing(diagonal: Diagonal, rows: slice) -> Crossing | None:
    first, stop = max(rows.start, diagonal.row), min(rows.stop, diagonal.row + diagonal.rows)
    if first >= stop:
        return None
    return slice(first - rows.start, stop - rows.start), slice(first + diagonal.shift, stop + diagonal.shift)


def _scores(query: Tensor, key: Tensor, crossings: list[Crossing], scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """Scores in base 2 ``[diagonals, heads, rows, 1]``, -inf where a row is not on a diagonal; the slope of the cap."""
    products = query.new_zeros(len(crossings), *query.shape[:2], 1)
    for product, (mine, keys) in zip(products, crossings, strict=True):
        torch.linalg.vecdot(query[:, mine], key[:, keys], out=product[:, mine, 0])
    scores, slope = scoring.bend(products.mul_(scoring.factor))
    for score, (mine, _) in zip(scores, crossings, strict=True):
        score[:, : mine.start] = -torch.inf
        score[:, mine.stop :] = -torch.inf
    return scores, slope
