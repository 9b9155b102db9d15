"""A window that learns its length."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..masks import Mask, SlidingWindow
from .features import Features, LayerShape, at_least_float32
from .weighting import Weighting

# Plans round spans to multiples of this many keys, so that few plans are made while spans are learned.
GRAIN = 32
# Spans are float32, which represents all integers up to this one.
LONGEST = 2**24


@dataclass(frozen=True)
class AdaptiveSpan(Weighting):
    """Each head learns a span z: it sees all keys up to that distance, and beyond it the weight falls to 0 on a ramp.

    ``f(i, j) = clip(1 + (z - (i - j)) / ramp, 0, 1)``. It starts with the longest span, so a pretrained model with a
    shorter context is unchanged at first; a penalty makes the spans as short as they can be without harm. Sukhbaatar et
    al., "Adaptive Attention Span in Transformers" (https://arxiv.org/abs/1905.07799).

    Parameters:
        max: the longest span.
        ramp: number of keys over which the weight falls.
        dynamic: compute the span of each query from its hidden state, ``z = max * min(1, 2 sigmoid(v h + b))``. The
            paper's ``max * sigmoid(v h + b)`` would start with half the longest span.
    """

    max: int
    ramp: int = 32
    dynamic: bool = False

    name: ClassVar[str] = "adaptive_span"

    def __post_init__(self) -> None:
        self._require_int("max", 1, LONGEST)
        self._require_int("ramp", 1, LONGEST)
        if isinstance(self.dynamic, str):
            object.__setattr__(self, "dynamic", {"true": True, "false": False}.get(self.dynamic, self.dynamic))
        self._require("dynamic", isinstance(self.dynamic, bool), "true or false")

    @property
    def envelope(self) -> Mask:
        return SlidingWindow(self.max + self.ramp)

    @property
    def scores_pairs(self) -> bool:
        return False

    def module(self, shape: LayerShape) -> nn.Module:
        return _DynamicSpans(self, shape) if self.dynamic else _Spans(self, shape)

    def continues(self, other: Weighting) -> bool:
        return isinstance(other, AdaptiveSpan) and (self.max, self.dynamic) == (other.max, other.dynamic)

    def log_weight(self, query: Tensor, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        weight = 1 + (query - distance) / self.ramp
        # NOTE: the gradient of log(0) is NaN even where `where` then drops the value, hence the inner `where`.
        seen = weight > 0
        return torch.where(seen, torch.where(seen, weight, 1.0).clamp(max=1.0).log(), -torch.inf)

    def certain(self, features: Features, heads: slice) -> Mask | None:
        inner = int(self._spans(features, heads).min()) + 1
        return SlidingWindow(inner // GRAIN * GRAIN) if inner >= GRAIN else SlidingWindow(1)

    def reach(self, features: Features, heads: slice) -> Tensor | None:
        outer = self._spans(features, heads).amax(0) + self.ramp
        return (outer / GRAIN).ceil().long() * GRAIN

    def plan_keys(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
        if self.dynamic:
            return range(heads)
        spans = self._spans(features, slice(None))[:, 0].tolist()
        return [(int(z + 1) // GRAIN, -int(-(z + self.ramp) // GRAIN)) for z in spans]

    def reads(self, features: Features) -> Mask:
        if self.dynamic:
            return self.envelope
        longest = float(self._spans(features, slice(None)).max())
        return SlidingWindow(math.ceil(longest) + self.ramp)

    def _spans(self, features: Features, heads: slice) -> Tensor:
        """Return the spans ``[h, N or 1]`` of one document, or the longest of all rows of a batch."""
        # NaN spans count as the longest here; the output is NaN, too, and training will find it.
        spans = features.query.detach()[..., 0].nan_to_num(self.max)
        return (spans if spans.ndim == 2 else spans.amax(0))[heads]


class _Clamp(torch.autograd.Function):
    """Clamp to 0..1, and outside let only those gradients pass that lead back; `clamp` would let none pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,), (grad,) = ctx.saved_tensors, grad_outputs
        # Gradient descent moves against the gradient.
        leads_away = ((x > 1) & (grad < 0)) | ((x < 0) & (grad > 0))
        return grad.masked_fill(leads_away, 0.0)


class _Spans(nn.Module):
    """Learns a span for each head, as a share of the longest."""

    def __init__(self, mask: AdaptiveSpan, shape: LayerShape) -> None:
        super().__init__()
        self.mask = mask
        self.share = nn.Parameter(torch.ones(shape.query_heads))

    def forward(self, hidden: Tensor) -> Features:
        share = _Clamp.apply(at_least_float32(self.share))
        return Features(share[None, :, None, None] * self.mask.max)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """Return the mean span, as a share of the longest."""
        return features.query.mean() / self.mask.max


class _DynamicSpans(nn.Module):
    """Computes a span for each head and query."""

    def __init__(self, mask: AdaptiveSpan, shape: LayerShape) -> None:
        super().__init__()
        self.mask = mask
        self.weight = nn.Parameter(torch.zeros(shape.query_heads, shape.hidden_size))
        self.bias = nn.Parameter(torch.zeros(shape.query_heads))

    def forward(self, hidden: Tensor) -> Features:
        hidden = at_least_float32(hidden)
        logits = nn.functional.linear(hidden, self.weight.to(hidden), self.bias.to(hidden))
        shares = _Clamp.apply(2 * logits.sigmoid())
        return Features(shares.mT[..., None] * self.mask.max)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """Return the mean span, as a share of the longest."""
        return features.query.mean() / self.mask.max
