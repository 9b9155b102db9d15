"""What the kernels of the blockwise backend work on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adaptive import AdaptiveMask

LOG2E = math.log2(math.e)  # scores are kept in base 2: exp2 is fast for every input, exp is slow where it underflows


@dataclass(frozen=True)
class Scoring:
    """How products become weights.

    dropout, seed: the probability with which a weight is dropped, and where the random numbers start. Forward and
    backward draw them in the same order, so nothing needs to be kept.
    """

    scale: float
    softcap: float | None = None
    dropout: float = 0.0
    seed: int = 0

    def generator(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    @property
    def factor(self) -> float:
        """What the products of queries and keys are to be multiplied with before `bend`."""
        return self.scale * LOG2E if self.softcap is None else self.scale / self.softcap

    def bend(self, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores in base 2, in place, and with a soft cap its slope."""
        if self.softcap is None:
            return products, None
        bent = products.tanh_()
        slope = 1 - bent * bent
        return bent.mul_(self.softcap * LOG2E), slope

    def keep(self, like: Tensor, generator: torch.Generator) -> Tensor | None:
        """What weights are multiplied with: 0 where one is dropped, else what keeps their mean."""
        if not self.dropout:
            return None
        kept = torch.empty_like(like).bernoulli_(1 - self.dropout, generator=generator)
        return kept.div_(1 - self.dropout)


class Scratch:
    """Memory that is used again and again: to ask for fresh pages costs as much as to compute on them."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor, valid until the same name is taken again."""
        view = self.views.get((name, shape))
        if view is None:
            size, buffer = math.prod(shape), self.buffers.get(name)
            if buffer is None or buffer.numel() < size:
                buffer = self.buffers[name] = self.like.new_empty(size)
                self.views = {key: old for key, old in self.views.items() if key[0] != name}
            view = self.views[name, shape] = buffer[:size].view(shape)
        return view


@dataclass
class Weighing:
    """A mask that gives the pairs of a document weights, with what it has read of its tokens.

    query: ``[h, m, r]``; key: ``[g, n, s]``, None if it reads nothing of the keys. The gradients are summed up in
    tensors of these shapes; None where none is needed.

    hard: as in `Features`; constant: all queries have the same features.
    """

    leaf: AdaptiveMask
    hard: bool
    constant: bool
    query: Tensor
    key: Tensor | None
    grad_query: Tensor | None = None
    grad_key: Tensor | None = None

    def log_weight(self, query: Tensor, key: Tensor | None, distance: Tensor) -> Tensor:
        """For a tile, see `AdaptiveMask.log_weight`."""
        return self.leaf.log_weight(query, key, distance, self.hard)

    def gradients(self, query: Tensor, key: Tensor | None, distance: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Those of a tile's features, from those of its scores (in any shape of as many numbers).

        The weights of a tile are computed once more, and differentiated as what they are: a few lines of torch.
        """
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (query, key) if x is not None]
            weight = self.log_weight(inputs[0], inputs[1] if len(inputs) > 1 else None, distance)
            return torch.autograd.grad(weight, inputs, grad.view(weight.shape))


@dataclass
class Forward:
    """One document under one plan: query ``[h, m, D]``, key and value ``[g, n, D]``, and the results so far.

    out: ``[h, m, Dv]``; lse: the base-2 log-sum-exp of the scores so far, ``[h, m, 1]``, -inf where there were none.
    first_head: the index of the first of these h query heads among all; group: query heads that share a key head.
    weighings: what gives the pairs of some parts their weights.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor
    first_head: int
    group: int
    scratch: Scratch
    weighings: list[Weighing]

    def head_groups(self) -> Iterator[tuple[slice, slice]]:
        """Query heads and the key heads they use: one to one, or several with one."""
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
class Backward(Forward):
    """The same with the final ``out`` and ``lse`` (+inf where there were no keys), and gradients that are summed up.

    grad_out: ``[h, m, Dv]``; delta: its products with ``out`` summed over the head, ``[h, m, 1]``.
    """

    grad_out: Tensor
    delta: Tensor
    grad_query: Tensor
    grad_key: Tensor
    grad_value: Tensor


def normalized(values: Tensor, peak: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Values that were summed with the weights ``exp2(score - peak)``, and the log-sum-exp, both in place.

    Parameters:
        peak: the greatest score of each row, finite also where there is none.
        total: the sum of the weights.
    """
    return values.div_(total.clamp(min=torch.finfo(total.dtype).tiny)), total.log2_().add_(peak)


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Adds a part's values to ``out`` and its log-sum-exp to ``lse``, in place."""
    merged = torch.logaddexp2(lse, part_lse)
    shift = merged.clamp(min=torch.finfo(merged.dtype).min)
    out.mul_((lse - shift).exp2_()).add_(part.mul_((part_lse - shift).exp2_()))
    lse.copy_(merged)


def write(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """`merge` into rows that hold nothing yet."""
    out.copy_(part)
    lse.copy_(part_lse)
