"""A window that learns its length."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..masks import Mask, SlidingWindow
from .adaptive_mask import AdaptiveMask, Features, LayerShape, at_least_float32

# Lengths are rounded to this many keys where a plan is made: while they are learned, few plans are enough.
GRAIN = 32
# Spans are learned in float32, which tells positions below this number apart.
LONGEST = 2**24


@dataclass(frozen=True)
class AdaptiveSpan(AdaptiveMask):
    """Each head learns a span z, up to which it sees everything; behind it the weight falls to 0 along a ramp.

    ``f(i, j) = clip(1 + (z - (i - j)) / ramp, 0, 1)``. It starts with the longest span, so a pretrained model of
    shorter contexts is what it was; a penalty on the spans makes them as short as they can be without harm. Sukhbaatar
    et al., "Adaptive Attention Span in Transformers" (https://arxiv.org/abs/1905.07799).

    Parameters:
        max: the longest span.
        ramp: number of keys over which the weight falls.
        dynamic: the span of a query follows from its hidden state, ``z = max * min(1, 2 sigmoid(v h + b))``, the
            paper's ``max * sigmoid(v h + b)`` made to start with the longest.
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

    def module(self, shape: LayerShape) -> nn.Module:
        return _DynamicSpans(self, shape) if self.dynamic else _Spans(self, shape)

    def continues(self, other: AdaptiveMask) -> bool:
        return isinstance(other, AdaptiveSpan) and (self.max, self.dynamic) == (other.max, other.dynamic)

    def log_weight(self, query: Tensor | None, key: Tensor | None, distance: Tensor, hard: bool) -> Tensor:
        assert query is not None
        weight = 1 + (query - distance) / self.ramp
        # The trap: log(0) has no gradient that is a number, also where it is then cut off.
        seen = weight > 0
        return torch.where(seen, torch.where(seen, weight, 1.0).clamp(max=1.0).log(), -torch.inf)

    def certain(self, features: Features, heads: slice) -> Mask | None:
        inner = int(self._spans(features, heads).min()) + 1
        return SlidingWindow(inner // GRAIN * GRAIN) if inner >= GRAIN else SlidingWindow(1)

    def reach(self, features: Features, heads: slice) -> Tensor | None:
        outer = self._spans(features, heads).amax(0) + self.ramp
        return (outer / GRAIN).ceil().long() * GRAIN

    def lanes(self, features: Features, heads: int, group: int) -> Sequence[Hashable]:
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
        """``[h, Q or 1]``, of one row of a batch or over all."""
        assert features.query is not None
        # Where the model has come to NaN the output will be, too, for the training to find.
        spans = features.query.detach()[..., 0].nan_to_num(self.max)
        return (spans if spans.ndim == 2 else spans.amax(0))[heads]


class _Clamp(torch.autograd.Function):
    """To 0..1. Behind an end only a gradient passes that leads back: an ordinary clamp would hold what is there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,), (grad,) = ctx.saved_tensors, grad_outputs
        # A descent goes against the gradient.
        leads_away = ((x > 1) & (grad < 0)) | ((x < 0) & (grad > 0))
        return grad.masked_fill(leads_away, 0.0)


class _Spans(nn.Module):
    """A span for each head, as a share of the longest."""

    def __init__(self, mask: AdaptiveSpan, shape: LayerShape) -> None:
        super().__init__()
        self.mask = mask
        self.share = nn.Parameter(torch.ones(shape.query_heads))

    def forward(self, hidden: Tensor) -> Features:
        share = _Clamp.apply(at_least_float32(self.share))
        return Features(share[None, :, None, None] * self.mask.max)

    def penalty(self, hidden: Tensor, features: Features) -> Tensor:
        """The mean span, as a share of the longest."""
        assert features.query is not None
        return features.query.mean() / self.mask.max


class _DynamicSpans(nn.Module):
    """A span for each head and query."""

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
        """The mean span, as a share of the longest."""
        assert features.query is not None
        return features.query.mean() / self.mask.max
