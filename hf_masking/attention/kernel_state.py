"""The state that the kernels of the blockwise backend read and update, and the merging of parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan.layout import Layout
from .leaves import DocumentLeaf

LOG2E = math.log2(math.e)  # scores are kept in base 2: exp2 is fast for every input, exp is slow where it underflows


@dataclass(frozen=True)
class Scoring:
    """How the products of queries and keys become weights.

    seed: of the random numbers for dropout. Forward and backward draw them in the same order, so none are kept.
    """

    scale: float
    softcap: float | None = None
    dropout: float = 0.0
    seed: int = 0

    @property
    def factor(self) -> float:
        """The factor of the products before `bend`."""
        return self.scale * LOG2E if self.softcap is None else self.scale / self.softcap

    def bend(self, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scores in base 2, in place, and the slope of the soft cap, if there is one."""
        if self.softcap is None:
            return products, None
        bent = products.tanh_()
        slope = 1 - bent * bent
        return bent.mul_(self.softcap * LOG2E), slope


class Draws:
    """The random numbers of one pass over all tasks."""

    def __init__(self, scoring: Scoring, device: torch.device) -> None:
        self.dropout = scoring.dropout
        self.generator = torch.Generator(device).manual_seed(scoring.seed)

    def keep(self, like: Tensor) -> Tensor | None:
        """Return the factors of weights, 0 or ``1 / (1 - dropout)``; None without dropout."""
        if not self.dropout:
            return None
        kept = torch.empty_like(like).bernoulli_(1 - self.dropout, generator=self.generator)
        return kept.div_(1 - self.dropout)


class Scratch:
    """Memory that is used again and again: asking for fresh pages costs as much as computing on them."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor, valid until the same name is taken again."""
        view = self.views.get((name, shape))
        if view is None:
            size, buffer = math.prod(shape), self.buffers.get(name)
            if buffer is None or buffer.numel() < size:
                buffer = self.buffers[name] = self.like.new_empty(size)
                self.views = {key: old for key, old in self.views.items() if key[0] != name}
            view = self.views[name, shape] = buffer[:size].view(shape)
        return view


@dataclass
class ForwardState:
    """The tensors of one document for some query heads, and the results of the parts so far.

    query: ``[H, N, D]``; key, value: ``[G, M, D]``, of all key heads.
    out: ``[H, N, Dv]``; lse: L in base 2, the log-sum-exp of the scores so far ``[H, N, 1]``, -inf before the first.
    first_head: the index of the first of these query heads among all; group: query heads that share a key head.
    leaves: the adaptive leaves that give the pairs of weighted parts their weights.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor
    first_head: int
    group: int
    leaves: Sequence[DocumentLeaf]
    scoring: Scoring
    draws: Draws
    scratch: Scratch

    def head_groups(self) -> Iterator[tuple[slice, slice]]:
        """Yield query heads and the key heads that they use: one each, or one for several."""
        heads = self.query.shape[0]
        if self.group == 1:
            yield slice(0, heads), slice(self.first_head, self.first_head + heads)
            return
        head = 0
        while head < heads:
            key_head = (self.first_head + head) // self.group
            end = min(heads, (key_head + 1) * self.group - self.first_head)
            yield slice(head, end), slice(key_head, key_head + 1)
            head = end


@dataclass
class BackwardState(ForwardState):
    """The same with the final ``out`` and ``lse`` (+inf for a row without keys), and the gradients so far.

    grad_out: dO ``[H, N, Dv]``; delta: D = rowsum(dO * O) ``[H, N, 1]``.
    grad_query, grad_key, grad_value: sums of dQ, dK and dV over the parts.
    """

    grad_out: Tensor
    delta: Tensor
    grad_query: Tensor
    grad_key: Tensor
    grad_value: Tensor


class KeyGradient:
    """A gradient of keys ``[G, M, D]``, summed up in the layout of a part.

    sums: ``[G, C, M/C, D]``, a view of the gradient where the layout is one.
    """

    def __init__(self, layout: Layout, gradient: Tensor) -> None:
        self.layout, self.gradient = layout, gradient
        laid_out = layout.keys(gradient)
        self.sums = torch.zeros_like(laid_out) if layout.copies_keys else laid_out

    def write(self) -> None:
        """Add the sums to the gradient, if they are no view of it."""
        if self.layout.copies_keys:
            self.layout.add_keys(self.gradient, self.sums)


def normalized(values: Tensor, peak: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return values that were summed with the weights ``exp2(score - peak)``, and their log-sum-exp, both in place.

    Parameters:
        peak: the greatest score of each row, finite also for a row without keys.
        total: the sum of the weights.
    """
    return values.div_(total.clamp(min=torch.finfo(total.dtype).tiny)), total.log2_().add_(peak)


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a part's values into ``out`` and its log-sum-exp into ``lse``, in place."""
    merged = torch.logaddexp2(lse, part_lse)
    shift = merged.clamp(min=torch.finfo(merged.dtype).min)
    out.mul_((lse - shift).exp2_()).add_(part.mul_((part_lse - shift).exp2_()))
    lse.copy_(merged)


def write(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge into rows that have no results yet."""
    out.copy_(part)
    lse.copy_(part_lse)
