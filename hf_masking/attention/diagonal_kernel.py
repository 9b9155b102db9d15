"""Forward and backward of single distances: elementwise products, a few rows at a time so that they stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..plan.diagonals import Diagonals
from .operands import Backward, Forward, Scoring, merge

_ELEMENTS = 2**18  # of the queries that are looked at together


def forward(part: Diagonals, x: Forward, scoring: Scoring, generator: torch.Generator, *, fresh: bool) -> None:
    """Adds the part to ``x.out`` and ``x.lse``."""
    for heads, key_heads in x.head_groups():
        query, key, value = x.query[heads], x.key[key_heads], x.value[key_heads]
        for rows in _chunks(query):
            crossings = _crossings(part, rows)
            if not crossings:
                continue
            scores, _ = _scores(query, key, rows, crossings, scoring)
            peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
            weights = scores.sub_(peak).exp2_()
            total = weights.sum(-1, keepdim=True)
            if (keep := scoring.keep(weights, generator)) is not None:
                weights.mul_(keep)
            values = torch.zeros_like(x.out[heads, rows])
            for index, (mine, keys) in enumerate(crossings):
                values[:, mine].addcmul_(weights[:, mine, index, None], value[:, keys])
            merge(x.out[heads, rows], x.lse[heads, rows], values, peak, total)


def backward(part: Diagonals, x: Backward, scoring: Scoring, generator: torch.Generator) -> None:
    """Adds the part's share to the gradients of ``x``."""
    for heads, key_heads in x.head_groups():
        query, key, value = x.query[heads], x.key[key_heads], x.value[key_heads]
        for rows in _chunks(query):
            crossings = _crossings(part, rows)
            if not crossings:
                continue
            weights, slope = _scores(query, key, rows, crossings, scoring)
            weights.sub_(x.lse[heads, rows]).exp2_()
            grad_out = x.grad_out[heads, rows]
            grad_weights = torch.zeros_like(weights)
            for index, (mine, keys) in enumerate(crossings):
                torch.sum(grad_out[:, mine] * value[:, keys], -1, out=grad_weights[:, mine, index])
            keep = scoring.keep(weights, generator)
            dropped = weights if keep is None else weights * keep
            if keep is not None:
                grad_weights.mul_(keep)
            grad_scores = grad_weights.sub_(x.delta[heads, rows]).mul_(weights).mul_(scoring.scale)
            if slope is not None:
                grad_scores.mul_(slope)
            grad_query = x.grad_query[heads, rows]
            for index, (mine, keys) in enumerate(crossings):
                factor = grad_scores[:, mine, index, None]
                grad_query[:, mine].addcmul_(factor, key[:, keys])
                _add(x.grad_key[key_heads, keys], factor, query[:, rows][:, mine])
                _add(x.grad_value[key_heads, keys], dropped[:, mine, index, None], grad_out[:, mine])


def _add(total: Tensor, factor: Tensor, rows: Tensor) -> None:
    if total.shape[0] == rows.shape[0]:
        total.addcmul_(factor, rows)
    else:
        total.add_((factor * rows).sum(0, keepdim=True))


def _chunks(query: Tensor) -> Iterator[slice]:
    heads, length, size = query.shape
    step = max(1, _ELEMENTS // (heads * size))
    return (slice(row, min(row + step, length)) for row in range(0, length, step))


def _crossings(part: Diagonals, rows: slice) -> list[tuple[slice, slice]]:
    """For each diagonal that the chunk meets, its rows, counted from the chunk's first, and their keys."""
    met = []
    for diagonal in part.diagonals:
        first = max(rows.start, diagonal.row)
        stop = min(rows.stop, diagonal.row + diagonal.rows)
        if first < stop:
            shift = diagonal.shift
            met.append((slice(first - rows.start, stop - rows.start), slice(first + shift, stop + shift)))
    return met


def _scores(
    query: Tensor, key: Tensor, rows: slice, crossings: list[tuple[slice, slice]], scoring: Scoring
) -> tuple[Tensor, Tensor | None]:
    """Scores in base 2 ``[heads, rows, diagonals]``, -inf where a row is not on a diagonal; the slope of the cap."""
    query = query[:, rows]
    products = query.new_zeros((*query.shape[:2], len(crossings)))
    for index, (mine, keys) in enumerate(crossings):
        torch.sum(query[:, mine] * key[:, keys], -1, out=products[:, mine, index])
    scores, slope = scoring.bend(products.mul_(scoring.factor))
    for index, (mine, _) in enumerate(crossings):
        scores[:, : mine.start, index] = -torch.inf
        scores[:, mine.stop :, index] = -torch.inf
    return scores, slope
