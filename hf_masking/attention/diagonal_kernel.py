"""Forward and backward of single distances: elementwise products of rows that stand a distance apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan.diagonals import Diagonal, Diagonals
from .kernel_state import BackwardState, ForwardState, Scoring, merge, normalized

_ELEMENTS = 2**19  # of the queries of one chunk; fewer would fit the cache better and start operations more often


class _Crossing(NamedTuple):
    """The rows of a chunk that are on a diagonal, counted from its first, and their keys."""

    rows: slice
    keys: slice


def forward(part: Diagonals, x: ForwardState, *, fresh: bool) -> None:
    """Merge the part into ``x.out`` and ``x.lse``."""
    for heads, key_heads in x.head_groups():
        key, value = x.key[key_heads], x.value[key_heads]
        for rows, crossings in _chunks(part, x.query[heads]):
            S, _ = _scores(x.query[heads, rows], key, crossings, x.scoring)
            peak = S.amax(0).clamp_(min=torch.finfo(S.dtype).min)
            P = S.sub_(peak).exp2_()
            total = P.sum(0)
            if (keep := x.draws.keep(P)) is not None:
                P.mul_(keep)
            values = torch.zeros_like(x.out[heads, rows])
            for weights, crossing in zip(P, crossings, strict=True):
                values[:, crossing.rows].addcmul_(weights[:, crossing.rows], value[:, crossing.keys])
            merge(x.out[heads, rows], x.lse[heads, rows], *normalized(values, peak, total))


def backward(part: Diagonals, x: BackwardState) -> None:
    """Add the part's share to the gradients of ``x``; the letters are those of `block_kernel`."""
    for heads, key_heads in x.head_groups():
        key, value = x.key[key_heads], x.value[key_heads]
        grad_key, grad_value = x.grad_key[key_heads], x.grad_value[key_heads]
        for rows, crossings in _chunks(part, x.query[heads]):
            query, dO, grad_query = x.query[heads, rows], x.grad_out[heads, rows], x.grad_query[heads, rows]
            S, slope = _scores(query, key, crossings, x.scoring)
            P = S.sub_(x.lse[heads, rows]).exp2_()
            dP = torch.zeros_like(P)
            for products, (mine, keys) in zip(dP, crossings, strict=True):
                torch.linalg.vecdot(dO[:, mine], value[:, keys], out=products[:, mine, 0])
            keep = x.draws.keep(P)
            dropped = P if keep is None else P * keep
            if keep is not None:
                dP.mul_(keep)
            dS = dP.sub_(x.delta[heads, rows]).mul_(P).mul_(x.scoring.scale)
            if slope is not None:
                dS.mul_(slope)
            for of_scores, weights, (mine, keys) in zip(dS, dropped, crossings, strict=True):
                grad_query[:, mine].addcmul_(of_scores[:, mine], key[:, keys])
                _add(grad_key[:, keys], of_scores[:, mine], query[:, mine])
                _add(grad_value[:, keys], weights[:, mine], dO[:, mine])


def _add(total: Tensor, factor: Tensor, rows: Tensor) -> None:
    """Add factors times rows to the gradient of their key heads."""
    if total.shape[0] == rows.shape[0]:
        total.addcmul_(factor, rows)
    else:
        total.add_((factor * rows).sum(0, keepdim=True))


def _chunks(part: Diagonals, query: Tensor) -> Iterator[tuple[slice, list[_Crossing]]]:
    """Yield a few rows at a time, and the diagonals that they meet."""
    heads, length, size = query.shape
    step = max(1, _ELEMENTS // (heads * size))
    for row in range(0, length, step):
        rows = slice(row, min(row + step, length))
        if crossings := [crossing for diagonal in part.diagonals if (crossing := _crossing(diagonal, rows))]:
            yield rows, crossings


def _crossing(diagonal: Diagonal, rows: slice) -> _Crossing | None:
    first, stop = max(rows.start, diagonal.row), min(rows.stop, diagonal.row + diagonal.rows)
    if first >= stop:
        return None
    keys = slice(first + diagonal.shift, stop + diagonal.shift)
    return _Crossing(slice(first - rows.start, stop - rows.start), keys)


def _scores(query: Tensor, key: Tensor, crossings: list[_Crossing], scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """Return S in base 2 ``[diagonals, heads, rows, 1]``, -inf for a row that is not on it; the slope of the cap."""
    products = query.new_zeros(len(crossings), *query.shape[:2], 1)
    for product, (mine, keys) in zip(products, crossings, strict=True):
        torch.linalg.vecdot(query[:, mine], key[:, keys], out=product[:, mine, 0])
    scores, slope = scoring.bend(products.mul_(scoring.factor))
    for score, (mine, _) in zip(scores, crossings, strict=True):
        score[:, : mine.start] = -torch.inf
        score[:, mine.stop :] = -torch.inf
    return scores, slope
